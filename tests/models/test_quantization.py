"""Frozen matrices in 8 and 4 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.models.quantization import (
    dequantise,
    dequantise_layer,
    quantise,
    quantise_layers,
)
from chexmix_jax.models.transformer import TransformerConfig, abstract_params


def kernel(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_eight_bits_are_rounded_by_column():
  given = kernel(6, 2, 5)
  given[..., 3] = 0  # A column of nothing stays one.
  found = quantise(given, 2, "int8")
  assert found["kernel_int8"].dtype == jnp.int8 and found["kernel_int8"].shape == given.shape
  step = np.abs(given).reshape(12, 5).max(0) / 127
  back = dequantise(found, (6, 2), jnp.float32)
  assert np.all(np.abs(back - given) <= step / 2 + 1e-7)
  assert np.abs(found["kernel_int8"]).max() == 127 and not back[..., 3].any()


def test_four_bits_are_rounded_by_groups_and_packed():
  given = kernel(2, 96, 3, 4)
  found = quantise(given, 2, "int4")
  assert found["kernel_int4"].dtype == jnp.uint8 and found["kernel_int4"].shape == (96, 3, 4)
  assert found["kernel_group_scale"].shape == (3, 3, 4)
  groups = given.reshape(3, 64, 3, 4)
  step = np.abs(groups).max(1, keepdims=True) / 7
  back = dequantise(found, (2, 96), jnp.float32)
  assert back.shape == given.shape
  assert np.all(np.abs(back.reshape(groups.shape) - groups) <= step / 2 + 1e-6)
  # The first group: its inputs 0 and 32 share a byte.
  byte = int(found["kernel_int4"][0, 0, 0])
  halves = [(half ^ 8) - 8 for half in (byte & 15, byte >> 4)]
  np.testing.assert_array_equal(halves, np.rint(groups[0, [0, 32], 0, 0] / step[0, 0, 0, 0]))
  # What is on the grid is held as it is, -7 and 7 among it.
  again = quantise(back, 2, "int4")
  np.testing.assert_array_equal(again["kernel_int4"], found["kernel_int4"])


def test_four_bits_need_whole_groups():
  with pytest.raises(UserError, match=r"A matrix of 96 inputs .* groups of 64; use int8"):
    quantise(kernel(96, 2), 1, "int4")


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_layers_there_and_back(bits):
  config = TransformerConfig(
      vocab_size=8, num_layers=2, width=64, num_heads=4, mlp_dim=128, rotary_dim=4
  )
  shapes = abstract_params(config)["layers"]
  layers = jax.tree.map(lambda leaf: jnp.asarray(kernel(*leaf.shape)), shapes)
  quantised = quantise_layers(layers, bits)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(quantised))
  assert size < sum(leaf.nbytes for leaf in jax.tree.leaves(layers)) / (3 if bits == "int8" else 5)
  assert quantised["norm"] is layers["norm"]
  back = jax.vmap(lambda layer: dequantise_layer(layer, (4, 16), jnp.bfloat16))(quantised)
  assert jax.tree.map(lambda leaf: leaf.shape, back) == jax.tree.map(lambda s: s.shape, shapes)
  assert back["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
  error = np.abs(np.asarray(back["attn"]["out"]["kernel"], np.float32)
                 - layers["attn"]["out"]["kernel"])  # fmt: skip
  assert error.max() < (0.03 if bits == "int8" else 0.4)
