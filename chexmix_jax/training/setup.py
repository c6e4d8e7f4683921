"""What a training run is, and what it computes with; find_learning_rate sets up the same."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import optax

from chexmix_jax import config as config_lib
from chexmix_jax.data.pipeline import DataConfig, Plan, make_plan, read_card, train_iterator
from chexmix_jax.data.sources.files import file_sha256
from chexmix_jax.errors import UserError
from chexmix_jax.models import flops
from chexmix_jax.models.adapter import PROJECTIONS
from chexmix_jax.models.attention import check_backend
from chexmix_jax.models.transformer import Params, TransformerConfig
from chexmix_jax.parallel.distributed import batch_share, whole_batch
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import named_sharding
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.base import base_card, describe_base, load_base
from chexmix_jax.training.optimizer import OptimizerConfig, make_optimizer
from chexmix_jax.training.step import (
  StepFunction,
  TrainState,
  abstract_state,
  jit_init_state,
  jit_train_step,
)
from chexmix_jax.training.validation import ValidationConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One training run.

  Attributes:
    model: its `vocab_size` is 0 (taken from the tokens) or equal to the tokens' vocabulary.
    steps: optimizer steps in all.
    accumulation: micro-batches a step; `data.batch_size` counts all of them.
    init: run directory whose parameters to start from (the best of a run with validations, else
      the newest), or "" for fresh ones; with `model.adapter` they are what is adapted, and the
      checkpoints hold only what is trained.
    log_every: steps a line of metrics sums up.
    checkpoint_every: steps between checkpoints; the last step is always kept.
    validation: at every checkpoint, or None for none.
    max_skipped: steps in a row whose loss or gradient is not finite, after which a run ends.
  """

  model: TransformerConfig
  data: DataConfig
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  seed: int = 0
  steps: int = 1000
  accumulation: int = 1
  init: str = ""
  log_every: int = 20
  checkpoint_every: int = 200
  max_skipped: int = 10
  validation: ValidationConfig | None = None

  def __post_init__(self):
    names = ("steps", "accumulation", "log_every", "checkpoint_every", "max_skipped")
    config_lib.check_at_least_one(self, names, "a training")


def make_job(config: TrainConfig) -> dict[str, Any]:
  """What a run is made of, for JSON: its settings and the card of its tokens.

  The mesh is left out, as a run may go on with other devices. Raises UserError where the model's
  vocabulary is not that of the tokens.
  """
  card = read_card(config.data)
  size = card["vocabulary"]["size"]
  if config.model.vocab_size not in (0, size):
    raise UserError(
        f"model.vocab_size={config.model.vocab_size}, but the tokens in {config.data.tokens} have a"
        f" vocabulary of {size}; set it to 0 to take theirs."
    )
  settings = config_lib.to_dict(config)
  settings["model"]["vocab_size"] = size
  del settings["mesh"]
  job: dict[str, Any] = {"train": settings, "tokens": card}
  if config.model.classifier is not None and config.data.labels.file:
    job["labels_sha256"] = file_sha256(pathlib.Path(config.data.labels.file))
  if config.model.adapter is not None:
    if not config.init:
      raise UserError("init is empty, but model.adapter adapts a model; name its run directory.")
    kernels = (f"layers.{projection}.kernel" for projection in PROJECTIONS)
    if config.optimizer.name == "muon" and not any(map(config.model.adapter.trains, kernels)):
      raise UserError(
          "optimizer.name='muon' is for kernels of the layers, and model.adapter trains none of"
          " them; set it to 'adamw'."
      )
    job["base"] = describe_base(pathlib.Path(config.init))
  return job


def check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
  """UserError where the rows of a step cannot be shared out evenly."""
  rows = mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation
  if config.data.batch_size < 1 or config.data.batch_size % rows:
    raise UserError(
        f"data.batch_size={config.data.batch_size} must be a positive multiple of {rows} (data x"
        " fsdp devices x accumulation)."
    )


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a run computes with, on its mesh.

  Attributes:
    config: with the size of the vocabulary.
    abstract: shapes and shardings of the state.
    iterator: of this process's rows of the batches.
  """

  config: TrainConfig
  job: dict[str, Any]
  vocabulary: Vocabulary
  plan: Plan
  mesh: jax.sharding.Mesh
  optimizer: optax.GradientTransformation
  abstract: TrainState
  step_fn: StepFunction
  iterator: grain.DatasetIterator

  def load_init(self) -> Params | None:
    """The parameters of `config.init`, whose ids must mean what the tokens' ids mean, if any."""
    if not self.config.init:
      return None
    run_dir = pathlib.Path(self.config.init)
    theirs = base_card(run_dir, self.job["tokens"], self.config.model.adapter)
    for key in ("vocabulary", "image_tokenizer", "text_tokenizer"):
      if theirs[key] != self.job["tokens"][key]:
        raise UserError(
            f"init={run_dir} was trained with another {key.replace('_', ' ')} than the tokens' own;"
            " name another run, or tokens made with the one that it was trained with."
        )
    return load_base(run_dir, self.config.model, self.mesh, self.job.get("base"))

  def first_state(self, base: Params | None) -> TrainState:
    """Fresh state, born sharded; of a base where there is one, which is used up."""
    init = jit_init_state(self.config.model, self.optimizer, self.abstract)
    return init(jax.random.key(self.config.seed), base)

  def next_batch(self) -> tuple[dict[str, jax.Array], float]:
    """The next batch on the mesh, and what attention makes of it, see flops.packed_context."""
    sharding = named_sharding(self.mesh, ("batch", None))
    local = next(self.iterator)
    batch = whole_batch(sharding, self.config.data.batch_size, local)
    return batch, flops.packed_context(local["positions"], local["segment_ids"])


@contextlib.contextmanager
def set_up(
    config: TrainConfig, optimizer: optax.GradientTransformation | None = None
) -> Iterator[Setup]:
  """Set-up of a run, for a with-block; `optimizer` instead of the config's.

  Raises UserError for inputs that do not fit together.
  """
  job = make_job(config)
  card = job["tokens"]
  vocabulary = Vocabulary(**card["vocabulary"])
  config = dataclasses.replace(
      config, model=dataclasses.replace(config.model, vocab_size=vocabulary.size)
  )
  classifier = config.model.classifier
  plan = make_plan(config.data, classifier.findings if classifier else ())
  mesh = make_mesh(config.mesh)
  check_batch(config, mesh)
  if config.model.attention == "auto":
    check_backend(config.model.dtype, config.model.num_heads, config.model.head_dim)
  optimizer = optimizer or make_optimizer(config.optimizer, config.steps)
  share = batch_share(named_sharding(mesh, ("batch", None)), config.data.batch_size)
  with (
      jax.set_mesh(mesh),
      contextlib.closing(train_iterator(config.data, *share, plan)) as iterator,
  ):
    abstract = abstract_state(config.model, optimizer, mesh)
    step_fn = jit_train_step(
        config.model, vocabulary, optimizer, abstract, mesh, config.accumulation
    )
    yield Setup(config, job, vocabulary, plan, mesh, optimizer, abstract, step_fn, iterator)
