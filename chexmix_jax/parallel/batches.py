"""A map over rows in batches of one size, which are shared out over the mesh."""

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from chexmix_jax.parallel.devices import MEMORY_FIRST
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.parallel.sharding import named_sharding
from chexmix_jax.progress import progress


def map_rows(
    function: Callable[[Any], Any], rows: Any, batch_size: int, description: str = ""
) -> Any:
  """`function` over a tree of arrays that share their first axis, N > 0: a tree of numpy arrays.

  `function` is jitted and sees `batch_size` rows at a time (rounded up to a multiple of the
  devices), sharded over the mesh; it must treat rows alike and apart. The last batch is padded
  with its last row, and what comes of padding is cut off. Outputs, (N, …) each, stay on the devices
  until the one transfer at the end. `description` names a progress bar; without one there is none.

  Parameters go in as `jax.tree_util.Partial(function, params)`: as arguments of the compiled
  function, which then serves the next checkpoint too, where a closure would make constants of them.
  """
  if not isinstance(function, jax.tree_util.Partial):
    function = jax.tree_util.Partial(function)
  mesh = make_mesh()
  batch_size = -(-batch_size // mesh.size) * mesh.size
  count = len(jax.tree.leaves(rows)[0])
  outputs = []
  with jax.set_mesh(mesh):
    starts: Iterable[int] = range(0, count, batch_size)
    if description:
      starts = progress(starts, desc=description, unit="batch", leave=False)
    for start in starts:
      take = np.minimum(np.arange(start, start + batch_size), count - 1)
      batch = jax.tree.map(operator.itemgetter(take), rows)
      outputs.append(_apply(function, put_rows(mesh, batch)))
  outputs = jax.device_get(outputs)
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *outputs)


@functools.partial(jax.jit, compiler_options=MEMORY_FIRST)
def _apply(function: jax.tree_util.Partial, batch: Any) -> Any:
  return function(batch)


def put_rows(mesh: jax.sharding.Mesh, rows: Any) -> Any:
  """A tree of arrays that share their first axis, a multiple of the devices, over the mesh."""

  def put(array: np.ndarray) -> jax.Array:
    return jax.device_put(array, named_sharding(mesh, ("batch", *(None,) * (array.ndim - 1))))

  return jax.tree.map(put, rows)
