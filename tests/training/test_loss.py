"""The chunked, sharded cross-entropy against optax's over full logits, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.training import loss as loss_lib
from chexmix_jax.training.loss import weighted_nll

B, T, D, V = 8, 24, 16, 64


def draw():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(B, T, D)).astype(np.float32)
  kernel = rng.normal(size=(D, V)).astype(np.float32)
  bias = rng.normal(size=V).astype(np.float32)
  targets = rng.integers(0, V, (B, T), np.int32)
  weights = (rng.random((B, T)) * (rng.random((B, T)) > 0.3)).astype(np.float32)
  return hidden, kernel, bias, targets, weights


def plain(hidden, kernel, bias, targets, weights):
  nll = optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel + bias, targets)
  return jnp.sum(nll * weights), nll


def value_and_gradients(function, arrays):
  # Scaled, as a cotangent of 1 would hide a mistake in its way back.
  scaled = lambda *args: jax.tree.map(lambda x: 0.37 * x, function(*args))  # noqa: E731
  return jax.jit(jax.value_and_grad(scaled, (0, 1, 2), has_aux=True))(*arrays)


@pytest.mark.parametrize("chunk", [1 << 26, 24 * V, 1])
def test_chunks_give_what_full_logits_give(chunk, monkeypatch):
  monkeypatch.setattr(loss_lib, "CHUNK_LOGITS", chunk)
  arrays = draw()
  ours, theirs = (value_and_gradients(f, arrays) for f in (weighted_nll, plain))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices, see launch/test.sh")
@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 4, 2)])
def test_a_mesh_gives_what_one_device_gives(sizes, monkeypatch):
  monkeypatch.setattr(loss_lib, "CHUNK_LOGITS", 12 * V)
  arrays = draw()
  theirs = value_and_gradients(plain, arrays)
  with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
    ours = jax.device_get(value_and_gradients(weighted_nll, arrays))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_keeps_the_sum_and_the_parameters_gradients_in_float32():
  hidden, *rest = draw()
  (total, nll), gradients = value_and_gradients(
      weighted_nll, (jnp.asarray(hidden, jnp.bfloat16), *rest)
  )
  assert total.dtype == nll.dtype == gradients[1].dtype == gradients[2].dtype == jnp.float32
  assert gradients[0].dtype == jnp.bfloat16
  expected, theirs = value_and_gradients(plain, (hidden, *rest))
  np.testing.assert_allclose(total, expected[0], rtol=5e-3)
  np.testing.assert_allclose(gradients[1], theirs[1], atol=0.02 * np.abs(theirs[1]).max())


def test_the_logits_of_all_tokens_are_never_in_memory():
  shapes = [(4, 2048, 64), (64, 60_000), (60_000,)]
  abstract = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
  abstract += [jax.ShapeDtypeStruct((4, 2048), dtype) for dtype in (np.int32, np.float32)]
  gradient = jax.jit(jax.grad(weighted_nll, (0, 1, 2), has_aux=True))
  temporary = gradient.lower(*abstract).compile().memory_analysis().temp_size_in_bytes
  logits = 4 * 4 * 2048 * 60_000
  assert logits / 8 < temporary < logits / 2
