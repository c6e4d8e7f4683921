"""Parameters whose layers are stacked, taken apart for inference."""

from typing import Any

import jax


def unstack(stacked: jax.Array) -> tuple[jax.Array, ...]:
  """The arrays along the first axis of another, which is deleted."""
  parts = jax.block_until_ready(jax.jit(tuple)(stacked))
  stacked.delete()
  return parts


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
  """The same parameters with a tuple of layers, each of them an array of its own.

  For inference: to generate, XLA would take stacked ones apart in every call, with all of them in
  memory twice. What is stacked here is deleted array by array; some or all may have gone through
  `unstack` before.
  """
  leaves, tree = jax.tree.flatten(params["layers"], is_leaf=lambda x: isinstance(x, tuple))
  columns = [leaf if isinstance(leaf, tuple) else unstack(leaf) for leaf in leaves]
  layers = tuple(jax.tree.unflatten(tree, row) for row in zip(*columns, strict=True))
  return {**params, "layers": layers}
