import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.parallel.batches import map_rows


def _affine(weight, rows):
  return {"sum": rows["a"] @ weight + rows["b"], "batch": jnp.full(len(rows["b"]), len(rows["b"]))}


@pytest.mark.parametrize("count", [1, 8, 19])
def test_rows_come_back_in_order_and_without_padding(count):
  rng = np.random.default_rng(0)
  rows = {"a": rng.normal(size=(count, 3)).astype(np.float32), "b": np.arange(count)}
  weight = np.array([1.0, 2.0, 3.0], np.float32)
  result = map_rows(jax.tree_util.Partial(_affine, weight), rows, 8)
  np.testing.assert_allclose(result["sum"], rows["a"] @ weight + rows["b"], rtol=1e-5)
  # A batch is never smaller than asked for, so one shape is compiled.
  np.testing.assert_array_equal(result["batch"], np.full(count, 8))


def test_a_plain_function_will_do():
  np.testing.assert_array_equal(map_rows(lambda x: x + 1, np.arange(5), 2), np.arange(1, 6))


def test_other_parameters_are_not_compiled_anew():
  traced = []

  def function(weight, rows):
    traced.append(weight)
    return rows * weight

  for weight in (2.0, 3.0):
    partial = jax.tree_util.Partial(function, jnp.float32(weight))
    np.testing.assert_array_equal(map_rows(partial, np.ones(5, np.float32), 4), np.full(5, weight))
  assert len(traced) == 1


@pytest.mark.skipif(jax.device_count() != 8, reason="wants 8 devices, see launch/test.sh")
def test_rows_are_shared_out_over_all_devices():
  rows = np.arange(21.0)
  result = map_rows(lambda x: (x * 2, jnp.full(len(x), len(x))), rows, 3)
  np.testing.assert_array_equal(result[0], rows * 2)
  assert set(result[1]) == {8}
