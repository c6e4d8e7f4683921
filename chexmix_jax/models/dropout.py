"""Dropout by a hash of key and place.

jax.random's Threefry takes about a hundred operations a number, too many for the TPU compiler to
fuse: it would write ten arrays of 32-bit numbers to memory for every mask. Two rounds of a 32-bit
mixer are fused into the sum that follows, and give the same mask on every mesh and platform.
"""

import jax
import jax.numpy as jnp


def dropout(x_BTD: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """x with a share of `rate` of its numbers set to 0 and the others scaled up; x without a key."""
  if key is None or rate == 0.0:
    return x_BTD
  keep = bits(key, x_BTD.shape) >= jnp.uint32(rate * 2**32)
  return jnp.where(keep, x_BTD / (1.0 - rate), 0)


def bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Random uint32 of a shape, for masks; jax.random has better ones for all else."""
  words = jax.random.key_data(key).reshape(-1)[-2:]
  rows = jnp.zeros(shape[:-1], jnp.uint32)
  for axis, size in enumerate(shape[:-1]):
    rows = rows * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape[:-1], axis)
  rows = _mix(rows ^ words[0])[..., None]
  columns = jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
  return _mix(rows + columns * jnp.uint32(0x9E3779B9) ^ words[1])


def _mix(x: jax.Array) -> jax.Array:
  """The last steps of MurmurHash3 (Appleby 2011): every bit in changes every bit out by half."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
