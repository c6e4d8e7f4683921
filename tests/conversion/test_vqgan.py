"""Names and layouts of the VQModel: everything is taken once, and what is wrong is named."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from chexmix_jax.conversion.vqgan import (
    config_from_torch,
    config_to_torch,
    params_from_torch,
    params_to_torch,
    torch_shapes,
)
from chexmix_jax.errors import UserError
from chexmix_jax.models.vqgan import VQGANConfig, abstract_params, init_params

CONFIG = VQGANConfig(
    resolution=16, in_channels=1, width=8, channel_multipliers=(1, 2), num_res_blocks=1,
    attention_resolutions=(8,), z_channels=4, embed_dim=4, num_codes=8, num_groups=4,
)  # fmt: skip


def _conv(name, cin, cout, kernel=3):
  return {f"{name}.weight": (cout, cin, kernel, kernel), f"{name}.bias": (cout,)}


def _norm(name, channels):
  return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _res(name, cin, cout):
  shapes = _norm(f"{name}.norm1", cin) | _conv(f"{name}.conv1", cin, cout)
  shapes |= _norm(f"{name}.norm2", cout) | _conv(f"{name}.conv2", cout, cout)
  return shapes | (_conv(f"{name}.nin_shortcut", cin, cout, 1) if cin != cout else {})


def _attn(name, channels):
  shapes = _norm(f"{name}.norm", channels)
  for part in ("q", "k", "v", "proj_out"):
    shapes |= _conv(f"{name}.{part}", channels, channels, 1)
  return shapes


def _mid(name, channels):
  blocks = _res(f"{name}.block_1", channels, channels) | _attn(f"{name}.attn_1", channels)
  return blocks | _res(f"{name}.block_2", channels, channels)


@pytest.fixture
def tensors():
  """The tensors of CONFIG as taming-transformers' VQModel names and shapes them."""
  shapes = _conv("encoder.conv_in", 1, 8) | _res("encoder.down.0.block.0", 8, 8)
  shapes |= _conv("encoder.down.0.downsample.conv", 8, 8)
  shapes |= _res("encoder.down.1.block.0", 8, 16) | _attn("encoder.down.1.attn.0", 16)
  shapes |= _mid("encoder.mid", 16) | _norm("encoder.norm_out", 16)
  shapes |= _conv("encoder.conv_out", 16, 4) | _conv("quant_conv", 4, 4, 1)
  shapes |= _conv("post_quant_conv", 4, 4, 1) | {"quantize.embedding.weight": (8, 4)}
  shapes |= _conv("decoder.conv_in", 4, 16) | _mid("decoder.mid", 16)
  for i in range(2):
    shapes |= _res(f"decoder.up.1.block.{i}", 16, 16) | _attn(f"decoder.up.1.attn.{i}", 16)
    shapes |= _res(f"decoder.up.0.block.{i}", 16 if i == 0 else 8, 8)
  shapes |= _conv("decoder.up.1.upsample.conv", 16, 16)
  shapes |= _norm("decoder.norm_out", 8) | _conv("decoder.conv_out", 8, 1)
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_tree_is_that_of_our_model(tensors):
  params = params_from_torch(CONFIG, tensors)
  shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(CONFIG))
  assert jax.tree.map(lambda leaf: leaf.shape, params) == shapes


def test_kernels_turn_from_oihw_to_hwio(tensors):
  params = params_from_torch(CONFIG, tensors)
  theirs = tensors["encoder.down.1.block.0.conv1.weight"]
  ours = params["encoder"]["levels"]["1"]["blocks"]["0"]["conv1"]["kernel"]
  assert ours[2, 1, 5, 13] == theirs[13, 5, 2, 1]
  up = params["decoder"]["ups"]["0"]["kernel"]
  np.testing.assert_array_equal(
      up, tensors["decoder.up.1.upsample.conv.weight"].transpose(2, 3, 1, 0)
  )


def test_training_only_tensors_are_passed_over(tensors):
  tensors["loss.discriminator.main.0.weight"] = np.zeros((1, 1))
  params_from_torch(CONFIG, tensors)


def test_what_is_wrong_is_named_all_at_once(tensors):
  del tensors["encoder.conv_out.bias"], tensors["quantize.embedding.weight"]
  tensors["encoder.extra.weight"] = np.zeros(3)
  tensors["decoder.norm_out.weight"] = np.zeros(9)
  with pytest.raises(UserError) as error:
    params_from_torch(CONFIG, tensors)
  message = str(error.value)
  assert "missing: encoder.conv_out.bias, quantize.embedding.weight" in message
  assert "unexpected: encoder.extra.weight" in message
  assert "decoder.norm_out.weight (9,) instead of (8,)" in message


def _round_trip(config):
  params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
  back = {name: read() for name, _, read in params_to_torch(config, params)}
  again = params_from_torch(config, back)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), params, again))
  return back


TAMING = VQGANConfig(
    resolution=16, in_channels=3, width=32, channel_multipliers=(1, 2), num_res_blocks=1,
    attention_resolutions=(8,), z_channels=4, embed_dim=6, num_codes=8,
)  # fmt: skip


def test_shapes_tell_the_config_and_there_and_back_is_bit_identical():
  tensors = _round_trip(TAMING)
  settings = config_to_torch(TAMING)
  assert config_from_torch(tensors, settings, "x") == TAMING
  # A resolution at which no level works is allowed in a yaml.
  settings["model"]["params"]["ddconfig"]["attn_resolutions"] = [8, 512]
  assert config_from_torch(tensors, settings, "x") == TAMING
  settings["model"]["params"]["ddconfig"]["ch_mult"] = [1, 4]
  with pytest.raises(UserError, match=r"channel_multipliers=\(1, 2\).*\(1, 4\) by its yaml"):
    config_from_torch(tensors, settings, "x")
  with pytest.raises(UserError, match="not one of a VQModel"):
    config_from_torch(tensors, {"model": {}}, "x")
  with pytest.raises(UserError, match="not the image tokenizer"):
    config_from_torch({"a": np.zeros(3)}, None, "x")


def test_what_pytorch_cannot_be_is_refused():
  config = dataclasses.replace(TAMING, patch=2)
  with pytest.raises(UserError, match="patch=2"):
    params_to_torch(config, {})


def test_the_published_shape_is_told_by_its_tensors():
  published = VQGANConfig()
  shapes = {
      name: types.SimpleNamespace(shape=shape)
      for name, shape in torch_shapes(published).items()
  }
  assert config_from_torch(shapes, None, "x") == published
