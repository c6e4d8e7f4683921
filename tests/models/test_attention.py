"""Every backend of attention against the plain einsum in float32, gradients included.

Splash runs here as on a TPU, in interpret mode; cuDNN runs where there is a GPU, and everywhere its
description of packed rows is read by a stand-in, and its program is lowered for CUDA.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.models import attention as attention_lib
from chexmix_jax.models import fused_attention
from chexmix_jax.models.attention import causal_attention, check_backend, choose_backend
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh

HAS_GPU = jax.default_backend() == "gpu"
BACKENDS = [
    "xla",
    "splash",
    pytest.param("cudnn", marks=pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")),
]
LENGTHS = (256, 200)  # Whole tiles of a TPU, and not.


def segments(kind, length):
  """Ids of two rows; 0 is padding."""
  slots = np.arange(length)
  if kind == "causal":
    return None
  if kind == "packed":
    first = np.searchsorted([1, 40, 41, 170], slots, side="right") + 1
    return np.stack([first, np.where(slots < 130, 1, 2)]).astype(np.int32)
  return np.stack([np.where(slots < 90, 1, 0), np.where(slots < 60, 1, 2 * (slots < 199))]).astype(
      np.int32
  )


def plain(q, k, v, ids):
  """The definition, in one piece."""
  length = q.shape[1]
  mask = np.tril(np.ones((length, length), bool))[None]
  if ids is not None:
    mask = mask & (ids[:, :, None] == ids[:, None])
  logits = jnp.einsum("BTHK,BSHK->BHTS", q, k, precision="highest") / np.sqrt(q.shape[-1])
  weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf), axis=-1)
  return jnp.einsum("BHTS,BSHK->BTHK", weights, v, precision="highest")


def draw(length, head_dim=80, heads=2, rows=2):
  rng = np.random.default_rng(0)
  return [rng.normal(size=(rows, length, heads, head_dim)).astype(np.float32) for _ in range(4)]


def output_and_gradients(function, q, k, v, grad):
  output, pull = jax.vjp(function, q, k, v)
  return output, *pull(grad.astype(output.dtype))


@functools.cache
def expected(kind, length):
  q, k, v, grad = draw(length)
  ids = segments(kind, length)
  return output_and_gradients(lambda q, k, v: plain(q, k, v, ids), q, k, v, grad)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["causal", "packed", "padded"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_gives_what_the_definition_gives(backend, kind, length):
  dtype, tolerance = (jnp.bfloat16, 0.02) if backend == "cudnn" else (jnp.float32, 1e-5)
  arrays = [jnp.asarray(x, dtype) for x in draw(length)]
  ids = segments(kind, length)
  run = jax.jit(
      lambda *arrays: output_and_gradients(
          lambda q, k, v: causal_attention(q, k, v, ids, backend), *arrays
      )
  )
  for ours, theirs in zip(run(*arrays), expected(kind, length), strict=True):
    assert ours.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), theirs, atol=tolerance * np.abs(theirs).max()
    )


@pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices, see launch/test.sh")
@pytest.mark.parametrize("kind", ["causal", "packed"])
def test_a_kernel_runs_on_every_device_of_a_mesh(kind):
  q, k, v, grad = (np.concatenate([x, x]) for x in draw(128))
  ids = segments(kind, 128)
  ids = None if ids is None else np.concatenate([ids, ids])
  ours_theirs = []
  for sizes in [(1, 1, 1), (2, 2, 2)]:
    with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
      run = jax.jit(
          lambda *arrays: output_and_gradients(
              lambda q, k, v: causal_attention(q, k, v, ids, "splash"), *arrays
          )
      )
      ours_theirs.append(jax.device_get(run(q, k, v, grad)))
  for ours, theirs in zip(*ours_theirs, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def read_packed(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
  """What jax's documentation says that its cuDNN attention does with packed rows."""
  assert mask_type == fused_attention.cudnn_attention.MaskType.PADDING_CAUSAL
  assert q_offsets.shape == (len(q), q_seqlen.shape[1] + 1)
  assert q_offsets.dtype == q_seqlen.dtype == np.int32
  output = np.full(q.shape, np.nan, np.float32)
  for row, (starts, lengths) in enumerate(zip(q_offsets, q_seqlen, strict=True)):
    for start, length in zip(starts, lengths, strict=False):
      assert (start < 0) == (length < 0)
      if start >= 0:
        cut = slice(int(start), int(start + length))
        parts = (x[row : row + 1, cut] for x in (q * scale * np.sqrt(q.shape[-1]), k, v))
        output[row, cut] = plain(*parts, None)[0]
  np.testing.assert_array_equal(q_seqlen, kv_seqlen)
  np.testing.assert_array_equal(q_offsets, kv_offsets)
  return jnp.asarray(output)


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_cudnn_is_told_where_the_segments_lie(kind, monkeypatch):
  monkeypatch.setattr(fused_attention.cudnn_attention, "dot_product_attention", read_packed)
  q, k, v, _ = draw(200)
  ids = segments(kind, 200)
  np.testing.assert_allclose(
      fused_attention.cudnn(q, k, v, jnp.asarray(ids)), plain(q, k, v, ids), atol=1e-5
  )


def test_a_row_of_more_segments_than_cudnn_is_told_of_is_not_a_number(monkeypatch):
  monkeypatch.setattr(fused_attention.cudnn_attention, "dot_product_attention", read_packed)
  q, k, v, _ = draw(200)
  number = fused_attention.max_segments(200)
  slots = np.arange(200)
  ids = jnp.asarray(np.stack([np.minimum(slots, n) for n in (number - 1, number)]))
  output = np.asarray(fused_attention.cudnn(q, k, v, ids))
  assert np.isfinite(output[0]).all() and np.isnan(output[1]).all()


@pytest.mark.parametrize("kind", ["causal", "packed"])
def test_cudnn_lowers_for_cuda(kind, monkeypatch):
  library = fused_attention.cudnn_attention
  monkeypatch.setattr(library, "check_cudnn_version", lambda: 91300)
  monkeypatch.setattr(library, "check_compute_capability", lambda capability: True)
  monkeypatch.setattr(library, "is_cuda_compute_capability_equal", lambda capability: False)
  q = jax.ShapeDtypeStruct((2, 256, 4, 80), jnp.bfloat16)
  ids = segments(kind, 256)

  def loss(q, k, v):
    return causal_attention(q, k, v, ids, "cudnn").astype(jnp.float32).sum()

  gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
  text = gradient.trace(q, q, q).lower(lowering_platforms=("cuda",)).as_text()
  assert "fmhaSoftmaxBackward" in text
  mask = '"mask_type": "CAUSAL"' if kind == "causal" else '"mask_type": "PADDING_CAUSAL"'
  assert mask in text.replace('\\22', '"').replace('\\"', '"')


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "head_dim", "has_segments", "backend"),
    [
        ("cpu", "0", "float32", 80, True, "xla"),
        ("tpu", "0", "bfloat16", 80, True, "splash"),
        ("tpu", "0", "float32", 32, False, "splash"),
        ("gpu", "9.0", "bfloat16", 80, True, "cudnn"),
        ("gpu", "8.0", "bfloat16", 80, False, "cudnn"),
        ("gpu", "8.0", "bfloat16", 80, True, "xla"),
        ("gpu", "9.0", "float32", 80, True, "xla"),
        ("gpu", "9.0", "bfloat16", 20, True, "xla"),
        ("gpu", "9.0", "bfloat16", 256, True, "xla"),
    ],
)
def test_the_backend_follows_from_platform_and_mask(
    monkeypatch, platform, capability, dtype, head_dim, has_segments, backend
):
  monkeypatch.setattr(attention_lib, "platform", lambda: platform)
  monkeypatch.setattr(
      attention_lib, "_is_hopper_or_later", lambda: float(capability) >= 9.0
  )
  assert choose_backend(dtype, head_dim, has_segments) == backend


def test_a_kernel_is_checked_against_plain_xla(monkeypatch):
  monkeypatch.setattr(attention_lib, "choose_backend", lambda *_: "splash")
  check_backend(jnp.float32, 2, 80)


def test_a_kernel_that_lets_documents_leak_is_refused(monkeypatch):
  monkeypatch.setattr(attention_lib, "choose_backend", lambda *_: "splash")
  splash = fused_attention.splash
  monkeypatch.setattr(
      fused_attention, "splash", lambda q, k, v, ids, interpret: splash(q, k, v, None, interpret)
  )
  with pytest.raises(UserError, match=r"splash attention is wrong on this cpu .*attention=xla"):
    check_backend(jnp.float32, 2, 80)
