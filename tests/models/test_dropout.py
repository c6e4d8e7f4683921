"""Dropout masks: their share, their independence, and that a mesh does not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from chexmix_jax.models.dropout import bits, dropout
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import named_sharding

SHAPE = (8, 64, 256)


def draw(seed):
  return np.asarray(bits(jax.random.key(seed), SHAPE))


def test_the_share_is_the_rate_and_the_mean_stays():
  x = jnp.ones(SHAPE)
  dropped = np.asarray(dropout(x, 0.1, jax.random.key(0)))
  assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.9)}
  # Five standard deviations.
  assert (dropped == 0).mean() == pytest.approx(0.1, abs=5 * (0.09 / x.size) ** 0.5)


def test_without_a_key_or_a_rate_nothing_is_dropped():
  x = jnp.ones(SHAPE)
  assert dropout(x, 0.1, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_numbers_are_even_over_their_range_and_their_bits():
  numbers = draw(0).reshape(-1)
  counts, _ = np.histogram(numbers, 256, (0, 2**32))
  assert scipy.stats.chisquare(counts).pvalue > 1e-4
  for bit in range(32):
    assert ((numbers >> bit) & 1).mean() == pytest.approx(0.5, abs=5 * 0.5 / numbers.size**0.5)


@pytest.mark.parametrize("other", ["next token", "next number", "next row", "next key"])
def test_masks_of_neighbours_are_independent(other):
  mask = (draw(0) < 0.5 * 2**32).astype(float)
  pairs = {
      "next token": (mask[:, 1:], mask[:, :-1]),
      "next number": (mask[..., 1:], mask[..., :-1]),
      "next row": (mask[1:], mask[:-1]),
      "next key": (mask, (draw(1) < 0.5 * 2**32).astype(float)),
  }
  a, b = (x.reshape(-1) for x in pairs[other])
  assert abs(np.corrcoef(a, b)[0, 1]) < 5 / a.size**0.5


@pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices, see launch/test.sh")
def test_a_mesh_gives_the_same_mask():
  mesh = make_mesh(MeshConfig(2, 2, 2))
  with jax.set_mesh(mesh):
    sharding = named_sharding(mesh, ("batch", None, "mlp"))
    ours = jax.jit(bits, static_argnums=1, out_shardings=sharding)(jax.random.key(3), SHAPE)
  np.testing.assert_array_equal(ours, draw(3))
