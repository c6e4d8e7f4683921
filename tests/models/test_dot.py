"""Products in pieces against whole ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexmix_jax.models import dot


def _linear(dot_general, features_in, features_out, dtype):
  axis = tuple(range(-len(features_in), 0))
  return nnx.LinearGeneral(
      features_in, features_out, axis=axis, dtype=dtype, param_dtype=dtype,
      dot_general=dot_general, rngs=nnx.Rngs(0),
  )  # fmt: skip


@pytest.mark.parametrize("features_in", [(96,), (4, 24)])
@pytest.mark.parametrize("features_out", [(50,), (5, 10)])
def test_pieces_add_up(monkeypatch, features_in, features_out):
  monkeypatch.setattr(dot, "_PIECE", 50 * 5)  # Of 40 rows, 40 and 16.
  x = jax.random.normal(jax.random.key(1), (2, 2, *features_in), jnp.bfloat16)
  layer = _linear(dot.dot_general, features_in, features_out, jnp.bfloat16)
  found = layer(x)
  assert found.dtype == jnp.bfloat16 and found.shape == (2, 2, *features_out)
  kernel = np.asarray(layer.kernel[...], np.float32).reshape(96, 50)
  expected = np.asarray(x, np.float32).reshape(4, 96) @ kernel
  np.testing.assert_allclose(
      np.asarray(found, np.float32).reshape(4, 50), expected, rtol=2**-7, atol=2**-8
  )


@pytest.mark.parametrize(("rows", "depth", "dtype", "products"), [
    (1, 96, jnp.bfloat16, 3), (dot._ROWS, 96, jnp.bfloat16, 3 * dot._ROWS),
    (dot._ROWS + 1, 96, jnp.bfloat16, 1), (1, 92, jnp.bfloat16, 1), (1, 96, jnp.float32, 1),
])  # fmt: skip
def test_few_rows_of_bfloat16_alone_go_in_pieces(monkeypatch, rows, depth, dtype, products):
  monkeypatch.setattr(dot, "_PIECE", 50 * 5)
  x, kernel = jnp.ones((rows, depth), dtype), jnp.ones((depth, 50), dtype)
  function = functools.partial(dot.dot_general, dimension_numbers=(((1,), (0,)), ((), ())))
  text = jax.jit(function).lower(x, kernel).as_text()
  assert text.count("stablehlo.dot_general") == products
