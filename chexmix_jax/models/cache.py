"""Keys and values of the tokens so far, for generation.

Shape suffixes: B batch, T tokens, S cached tokens, H heads, K head width.
"""

import dataclasses
from typing import NamedTuple

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of the tokens so far, an array a layer, in slots that all rows fill alike.

  One array a layer is updated in place inside a loop, where a stacked one would be copied at every
  step; with heads before slots no step has to transpose it; and as a token's slot is the same in
  all rows, a step writes one slice, where a scatter would go row by row. Of a single row the arrays
  are HSK, as XLA's CPU compiler copies a cache whose first axis is 1 at every step. On a CPU they
  are float32, which has no bfloat16 arithmetic: a step would convert all of them.
  """

  k_BHSK: tuple[jax.Array, ...]
  v_BHSK: tuple[jax.Array, ...]


class LayerCache(NamedTuple):
  """What one layer's attention looks back on: keys and values, where to write, what to see."""

  kv_BHSK: tuple[jax.Array, jax.Array]
  slot: jax.Array
  mask_BTS: jax.Array


def write(cached: jax.Array, new_BHTK: jax.Array, slot: jax.Array) -> jax.Array:
  """The keys or values of a layer with those of T tokens from `slot` on."""
  new = new_BHTK.reshape(*cached.shape[:-2], *new_BHTK.shape[-2:]).astype(cached.dtype)
  return jax.lax.dynamic_update_slice(cached, new, (*[0] * (cached.ndim - 2), slot, 0))
