"""Rotary position embedding, of a part of each head."""

import jax
import jax.numpy as jnp


def rotate(x_BTHK: jax.Array, positions_BT: jax.Array, rotary_dim: int, base: float) -> jax.Array:
  """Rotary embedding of the first `rotary_dim` dimensions, halves paired (Su et al. 2021)."""
  frequencies = base ** (-jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim)
  angles_BT1F = positions_BT[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles_BT1F), jnp.sin(angles_BT1F)
  first, second, rest = jnp.split(x_BTHK, [rotary_dim // 2, rotary_dim], axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate([*(r.astype(x_BTHK.dtype) for r in rotated), rest], axis=-1)
