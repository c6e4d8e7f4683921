"""Softmax attention, causal within segments or over a cache, on whatever suits the device best."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from chexmix_jax.errors import UserError
from chexmix_jax.models import fused_attention
from chexmix_jax.parallel.devices import device_kind, platform
from chexmix_jax.parallel.sharding import partition_spec

Backend = Literal["auto", "xla", "cudnn", "splash"]

_MASKED = -1e30  # Finite, so that a row with nothing to attend to stays finite too.


def attention(
    q_BTHK: jax.Array, k: jax.Array, v: jax.Array, mask_BTS: jax.Array, kv_axes: str = "BSHK"
) -> jax.Array:
  """softmax(q·k / sqrt(K)) · v over the positions that the boolean mask allows: (B, T, H, K).

  Keys and values lie as `kv_axes` says. A cache has heads before positions, "BHSK": for a single
  query XLA multiplies such arrays as they lie; the other order it transposes first, which takes
  eight times as long on a CPU. Where there is one row, "HSK" will do. Logits are float32.
  """
  logits_BHTS = jnp.einsum(
      f"BTHK,{kv_axes}->BHTS",
      q_BTHK * q_BTHK.shape[-1] ** -0.5,
      k,
      preferred_element_type=jnp.float32,
  )
  logits_BHTS = jnp.where(mask_BTS[:, None], logits_BHTS, _MASKED)
  weights_BHTS = jax.nn.softmax(logits_BHTS, axis=-1).astype(v.dtype)
  return jnp.einsum(f"BHTS,{kv_axes}->BTHK", weights_BHTS, v)


def causal_attention(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    segment_ids_BT: jax.Array | None,
    backend: Backend = "auto",
) -> jax.Array:
  """Attention of each token to itself and to what precedes it in its own segment: (B, T, H, K).

  Segments are runs of one id, so a row may end in padding of id 0, which sees padding alone.
  Without ids a row is one segment. `backend` "auto" is what choose_backend says.
  """
  if backend == "auto":
    backend = choose_backend(q_BTHK.dtype, q_BTHK.shape[-1], segment_ids_BT is not None)
  if backend == "xla":
    return _by_blocks(q_BTHK, k_BTHK, v_BTHK, segment_ids_BT)
  kernel: Callable[..., jax.Array] = fused_attention.cudnn
  if backend == "splash":
    kernel = functools.partial(fused_attention.splash, interpret=platform() != "tpu")
  return _on_every_device(kernel, q_BTHK, k_BTHK, v_BTHK, segment_ids_BT)


def choose_backend(dtype: jax.typing.DTypeLike, head_dim: int, has_segments: bool) -> Backend:
  """The fastest way that is right for a causal mask on the devices in force.

  Splash attention on a TPU. On a GPU cuDNN, for 16-bit numbers and head widths that are multiples
  of 8 up to 128; with segments from Hopper on, as cuDNN has no packed rows before. Else XLA.
  """
  if platform() == "tpu":
    return "splash"
  if platform() == "gpu":
    fits = jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    if fits and (not has_segments or _is_hopper_or_later()):
      return "cudnn"
  return "xla"


def check_backend(dtype: jax.typing.DTypeLike, num_heads: int, head_dim: int) -> None:
  """Compares what `choose_backend` names for packed rows with plain XLA, gradients included.

  UserError where they differ on this device: a kernel that lets documents leak into each other
  would spoil a run without any sign. Does nothing where the choice is XLA.
  """
  backend = choose_backend(dtype, head_dim, True)
  if backend == "xla":
    return
  shape = (2, 384, num_heads, head_dim)
  q, k, v, grad = (
      jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 4)
  )
  slots = jnp.arange(shape[1])
  segment_ids = jnp.stack([
      jnp.where(slots < 100, 1, jnp.where(slots < 331, 2, 0)),
      1 + (slots >= 7) + (slots >= 200) + (slots >= 201),
  ]).astype(jnp.int32)

  @functools.partial(jax.jit, static_argnums=0)
  def run(backend):
    output, pull = jax.vjp(
        lambda q, k, v: causal_attention(q, k, v, segment_ids, backend), q, k, v
    )
    real = (segment_ids > 0)[..., None, None]
    return jnp.where(real, output, 0), pull(jnp.where(real, grad, 0).astype(output.dtype))

  expected = jax.tree.leaves(run("xla"))
  for name, ours, theirs in zip(
      ("output", "dq", "dk", "dv"), jax.tree.leaves(run(backend)), expected, strict=True
  ):
    ours, theirs = ours.astype(jnp.float32), theirs.astype(jnp.float32)
    difference = float(jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(theirs)))
    # Rounding to bfloat16 differs by about 0.01; documents that leak, by 0.3 and more.
    if not difference < 0.05:
      raise UserError(
          f"{backend} attention is wrong on this {device_kind()} ({name} differs by"
          f" {difference:.2g} of its largest value); set --config.model.attention=xla."
      )


def _by_blocks(q_BTHK, k_BTHK, v_BTHK, segment_ids_BT):
  """Queries go block by block and see only the keys up to their own block.

  So nearly half of the square is never computed: on two CPU cores a gradient takes half the time of
  the plain form.
  """
  length = q_BTHK.shape[1]
  block = max(64, -(-length // 8))
  outputs = []
  for start in range(0, length, block):
    end = min(start + block, length)
    mask_BTS = (jnp.arange(start, end)[:, None] >= jnp.arange(end))[None]
    if segment_ids_BT is not None:
      mask_BTS &= segment_ids_BT[:, start:end, None] == segment_ids_BT[:, None, :end]
    outputs.append(attention(q_BTHK[:, start:end], k_BTHK[:, :end], v_BTHK[:, :end], mask_BTS))
  return jnp.concatenate(outputs, axis=1)


def _on_every_device(kernel, q_BTHK, k_BTHK, v_BTHK, segment_ids_BT):
  """A kernel knows nothing of the mesh: each device runs it on its own rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel(q_BTHK, k_BTHK, v_BTHK, segment_ids_BT)
  heads, rows = partition_spec(("batch", None, "heads", None)), partition_spec(("batch", None))
  return jax.shard_map(
      kernel, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
  )(q_BTHK, k_BTHK, v_BTHK, segment_ids_BT)


def _is_hopper_or_later() -> bool:
  return float(getattr(jax.devices()[0], "compute_capability", "0")) >= 9.0
