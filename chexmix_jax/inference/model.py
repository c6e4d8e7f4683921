"""A trained model as the evaluations and predictions use it."""

import dataclasses
import pathlib
from typing import Any

import jax

from chexmix_jax import config as config_lib
from chexmix_jax.models.transformer import (
    Params,
    TransformerConfig,
    abstract_params,
)
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.parallel.sharding import param_shardings
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.checkpoint import load_params, read_job


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """Parameters of one checkpoint with what is needed to use them.

  Attributes:
    job: the run's job.json: `train` (its TrainConfig) and `tokens` (the card of its records).
    step: of the checkpoint.
  """

  config: TransformerConfig
  vocabulary: Vocabulary
  params: Params
  job: dict[str, Any]
  step: int


def load_model(run_dir: pathlib.Path, step: int | None = None) -> LoadedModel:
  """The newest (or the given) checkpoint of a run, sharded over all devices' data axis.

  Raises UserError where the folder is not a run or holds no such checkpoint.
  """
  job = read_job(run_dir)
  config = config_lib.build(TransformerConfig, job["train"]["model"], f"{run_dir}/job.json: model")
  shapes = abstract_params(config)
  abstract = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      shapes,
      param_shardings(make_mesh(), shapes),
  )
  params, step = load_params(run_dir, abstract, step)
  return LoadedModel(config, Vocabulary(**job["tokens"]["vocabulary"]), params, job, step)
