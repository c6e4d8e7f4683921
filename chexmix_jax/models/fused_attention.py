"""Causal attention by kernels that never hold the logits: splash on TPUs, cuDNN on GPUs.

Both work on the rows and heads of one device and take q, k, v (B, T, H, K) and segment ids int32
(B, T) or None.
"""

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn_attention
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from chexmix_jax.data.packing import max_documents

_LANES = 128
_BLOCKS = (512, 384, 256, 128)


def splash(q_BTHK, k_BTHK, v_BTHK, segment_ids_BT, interpret: bool = False):
  """Splash attention (jax.experimental.pallas.ops.tpu); rows are padded to whole tiles.

  Heads of fewer than 128 numbers fill a tile with zeros inside the kernel. `interpret` runs it on
  any device, slowly.
  """
  length, num_heads, head_dim = q_BTHK.shape[1:]
  padded = -(-length // _LANES) * _LANES
  block = next(size for size in _BLOCKS if padded % size == 0)
  blocks = splash_attention_kernel.BlockSizes(
      block_q=block, block_kv=block, block_kv_compute=block,
      block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
      block_q_dq=block, block_kv_dq=block,
  )  # fmt: skip
  causal = splash_attention_mask.CausalMask((padded, padded))
  kernel = splash_attention_kernel.make_splash_mha(
      splash_attention_mask.MultiHeadMask([causal] * num_heads),
      head_shards=1,
      q_seq_shards=1,
      block_sizes=blocks,
      residual_checkpoint_name="attention",
      interpret=interpret,
  )
  more = padded - length
  q, k, v = (
      jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).swapaxes(1, 2)
      for x in (q_BTHK * head_dim**-0.5, k_BTHK, v_BTHK)
  )
  if segment_ids_BT is None:
    output_BHTK = jax.vmap(kernel)(q, k, v)
  else:
    # No id at all of what is added, so that it sees itself and a row of the softmax is never empty.
    ids_BT = jnp.pad(segment_ids_BT, ((0, 0), (0, more)), constant_values=-1)
    segment_ids = splash_attention_kernel.SegmentIds(ids_BT, ids_BT)
    output_BHTK = jax.vmap(kernel)(q, k, v, segment_ids=segment_ids)
  return output_BHTK.swapaxes(1, 2)[:, :length].astype(q_BTHK.dtype)


def cudnn(q_BTHK, k_BTHK, v_BTHK, segment_ids_BT):
  """cuDNN's flash attention, for 16-bit numbers; packed rows by the starts of their segments.

  A row may hold `max_segments` of them, its padding included: all that it gives for a row of more
  is NaN.
  """
  scale = q_BTHK.shape[-1] ** -0.5
  if segment_ids_BT is None:
    return cudnn_attention.dot_product_attention(
        q_BTHK, k_BTHK, v_BTHK, scale=scale, mask_type=cudnn_attention.MaskType.CAUSAL
    )
  starts, lengths, count_B = _runs(segment_ids_BT, max_segments(segment_ids_BT.shape[1]))
  output_BTHK = cudnn_attention.dot_product_attention(
      q_BTHK, k_BTHK, v_BTHK,
      q_seqlen=lengths, kv_seqlen=lengths, q_offsets=starts, kv_offsets=starts,
      scale=scale, mask_type=cudnn_attention.MaskType.PADDING_CAUSAL,
  )  # fmt: skip
  fits_B = count_B <= lengths.shape[1]
  return jnp.where(fits_B[:, None, None, None], output_BTHK, jnp.nan)


def max_segments(length: int) -> int:
  """How many segments cuDNN is told that a row may have: the most documents, and the padding."""
  return max_documents(length) + 1


def _runs(ids_BT, number: int):
  """Starts int32 (B, M+1) and lengths int32 (B, M) of runs of equal ids, then -1; runs a row (B,).

  The last start of all is left empty, as cuDNN has it: a row ends where its last run does.
  """
  length = ids_BT.shape[1]
  is_start_BT = jnp.diff(ids_BT, axis=1, prepend=ids_BT[:, :1] - 1) != 0
  count_B = is_start_BT.sum(axis=1)
  find = jax.vmap(lambda row: jnp.nonzero(row, size=number + 1, fill_value=length)[0])
  starts = find(is_start_BT).astype(jnp.int32)
  lengths = jnp.diff(starts, axis=1)
  is_there = starts < length
  starts = jnp.where(is_there, starts, -1).at[:, -1].set(-1)
  return starts, jnp.where(is_there[:, :-1], lengths, -1), count_B
