"""What every evaluation shares: its inputs, its result, and a batched map over the mesh.

An evaluation is a class of one file: `Evaluation(context, config).run(params)` gives a Result. It
is built once for a set of inputs, and run for each checkpoint.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from chexmix_jax.models.transformer import Params, TransformerConfig
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.parallel.sharding import named_sharding
from chexmix_jax.progress import progress
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.text import SentencePieceTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Context:
  """What the evaluations read, whatever the checkpoint.

  Attributes:
    model: shape of the checkpoints.
    vocabulary: of the checkpoints and of `tokens`.
    studies: folder of study records.
    tokens: folder of their token records, made with the two tokenizers.
    split: the split that is scored.
    seed: of masks and of baselines that are drawn by lot.
  """

  model: TransformerConfig
  vocabulary: Vocabulary
  studies: pathlib.Path
  tokens: pathlib.Path
  image_tokenizer: ImageTokenizer
  text_tokenizer: SentencePieceTokenizer
  split: str = "test"
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
  """What an evaluation found.

  Attributes:
    values: figure name -> number; baselines stand beside the figures, see each evaluation.
    artefacts: name -> array (numbers, pictures or str), for figures and tables of examples.
  """

  values: dict[str, float]
  artefacts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Evaluation(Protocol):
  """One evaluation over fixed inputs."""

  def run(self, params: Params) -> Result:
    """Scores the parameters of one checkpoint."""


def map_rows(
    function: Callable[[Any], Any], rows: Any, batch_size: int, description: str = ""
) -> Any:
  """`function` over a tree of arrays that share their first axis, N > 0: a tree of numpy arrays.

  `function` is jitted and sees `batch_size` rows at a time (rounded up to a multiple of the
  devices), sharded over the mesh; it must treat rows alike and apart. The last batch is padded
  with its last row, and what comes of padding is cut off. Outputs, (N, …) each, stay on the devices
  until the one transfer at the end. `description` names a progress bar.

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
    for start in progress(
        range(0, count, batch_size), desc=description, unit="batch", leave=False
    ):
      take = np.minimum(np.arange(start, start + batch_size), count - 1)
      batch = jax.tree.map(functools.partial(_put, mesh, take), rows)
      outputs.append(_apply(function, batch))
  outputs = jax.device_get(outputs)
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *outputs)


@jax.jit
def _apply(function: jax.tree_util.Partial, batch: Any) -> Any:
  return function(batch)


def _put(mesh: jax.sharding.Mesh, take: np.ndarray, array: np.ndarray) -> jax.Array:
  rows = array[take]
  return jax.device_put(rows, named_sharding(mesh, ("batch", *(None,) * (rows.ndim - 1))))
