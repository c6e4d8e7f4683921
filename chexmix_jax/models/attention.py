"""Softmax attention, causal within segments or over a cache; logits in float32."""

import jax
import jax.numpy as jnp

_MASKED = -1e30  # Finite, so that a row with nothing to attend to stays finite too.


def attention(
    q_BTHK: jax.Array, k: jax.Array, v: jax.Array, mask_BTS: jax.Array, kv_axes: str = "BSHK"
) -> jax.Array:
  """softmax(q·k / sqrt(K)) · v over the positions that the boolean mask allows: (B, T, H, K).

  Keys and values lie as `kv_axes` says. A cache has heads before positions, "BHSK": for a single
  query XLA multiplies such arrays as they lie; the other order it transposes first, which takes
  eight times as long on a CPU. Where there is one row, "HSK" will do.
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
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, segment_ids_BT: jax.Array
) -> jax.Array:
  """Attention of each token to itself and to what precedes it in its own segment: (B, T, H, K).

  Queries go block by block and see only the keys up to their own block, so nearly half of the
  square is never computed: on two CPU cores a gradient takes half the time of the plain form.
  """
  length = q_BTHK.shape[1]
  block = max(64, -(-length // 8))
  outputs = []
  for start in range(0, length, block):
    end = min(start + block, length)
    causal_TS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
    same_BTS = segment_ids_BT[:, start:end, None] == segment_ids_BT[:, None, :end]
    outputs.append(
        attention(q_BTHK[:, start:end], k_BTHK[:, :end], v_BTHK[:, :end], causal_TS & same_BTS)
    )
  return jnp.concatenate(outputs, axis=1)
