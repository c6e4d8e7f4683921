"""The training loop of both stages."""

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import jax

from chexmix_jax import config as config_lib
from chexmix_jax.data.pipeline import DataConfig, make_plan, read_card, train_iterator
from chexmix_jax.errors import UserError
from chexmix_jax.models import flops
from chexmix_jax.models.transformer import Params, TransformerConfig
from chexmix_jax.parallel.hardware import chip_of
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import named_sharding
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.checkpoint import (
    Checkpoints,
    load_params,
    read_job,
    saved_steps,
    write_job,
)
from chexmix_jax.training.logging import MetricsWindow, Row, RunLog, count_parameters
from chexmix_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)
from chexmix_jax.training.step import TrainState, abstract_state, init_state, jit_train_step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One training run.

  Attributes:
    model: its `vocab_size` is 0 (taken from the tokens) or equal to the tokens' vocabulary.
    steps: optimizer steps in all.
    accumulation: micro-batches a step; `data.batch_size` counts all of them.
    init: run directory whose newest parameters to start from, or "" for fresh ones.
    log_every: steps a line of metrics sums up.
    checkpoint_every: steps between checkpoints; the last step is always kept.
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

  def __post_init__(self):
    names = ("steps", "accumulation", "log_every", "checkpoint_every")
    config_lib.check_at_least_one(self, names, "a training")


def train(config: TrainConfig, run_dir: pathlib.Path, description: str = "train") -> None:
  """Trains to the last step, going on from the newest checkpoint in `run_dir` where there is one.

  Raises UserError for inputs that do not fit together and for a loss that is not finite.
  """
  card = read_card(config.data)
  vocabulary = Vocabulary(**card["vocabulary"])
  if config.model.vocab_size not in (0, vocabulary.size):
    raise UserError(
        f"model.vocab_size={config.model.vocab_size}, but the tokens in {config.data.tokens} have a"
        f" vocabulary of {vocabulary.size}; set it to 0 to take theirs."
    )
  config = dataclasses.replace(
      config, model=dataclasses.replace(config.model, vocab_size=vocabulary.size)
  )
  mesh = make_mesh(config.mesh)
  check_batch(config, mesh)
  optimizer = make_optimizer(config.optimizer, config.steps)
  with (
      jax.set_mesh(mesh),
      contextlib.closing(
          train_iterator(config.data, jax.process_index(), jax.process_count())
      ) as iterator,
  ):
    abstract = abstract_state(config.model, optimizer, mesh)
    step_fn = jit_train_step(
        config.model, vocabulary, optimizer, abstract, mesh, config.accumulation
    )
    resuming = bool(saved_steps(run_dir))
    # Whatever does not fit together has come to light before anything is written.
    params = None
    if config.init and not resuming:
      params = _load_init(pathlib.Path(config.init), card, abstract)
    settings = config_lib.to_dict(config)
    del settings["mesh"]  # A run may go on with other devices.
    write_job(run_dir, {"train": settings, "tokens": card})
    with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
      if resuming:
        state = checkpoints.restore(abstract, iterator)
      else:
        state = _first_state(config, optimizer, abstract, mesh, params)
      with contextlib.closing(RunLog(run_dir, int(state.step), config.steps, description)) as log:
        _run(config, state, step_fn, iterator, checkpoints, log, mesh)


def check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
  """UserError where the rows of a step cannot be shared out evenly."""
  rows = mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation
  if config.data.batch_size % rows or config.data.batch_size % jax.process_count():
    raise UserError(
        f"data.batch_size={config.data.batch_size} must be a multiple of {rows} (data x fsdp"
        " devices x accumulation) and of the number of processes."
    )


def _load_init(run_dir: pathlib.Path, card: dict[str, Any], abstract: TrainState) -> Params:
  """The newest parameters of another run, whose ids must mean what the tokens' ids mean."""
  theirs = read_job(run_dir)["tokens"]
  for key in ("vocabulary", "image_tokenizer", "text_tokenizer"):
    if theirs[key] != card[key]:
      raise UserError(
          f"init={run_dir} was trained with another {key.replace('_', ' ')} than the tokens' own;"
          " name another run, or tokens made with the one that it was trained with."
      )
  return load_params(run_dir, abstract.params)[0]


def _first_state(config, optimizer, abstract, mesh, params) -> TrainState:
  """Fresh state, born sharded; with the given parameters where there are any."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  init = jax.jit(
      functools.partial(init_state, config.model, optimizer), out_shardings=shardings
  )
  state = init(jax.random.key(config.seed))
  if params is not None:
    state = dataclasses.replace(state, params=params)
  if jax.process_index() == 0:
    plan = make_plan(config.data)
    print(f"{count_parameters(state.params):,} parameters on {mesh.size} device(s)")
    print(
        f"{plan.num_studies:,} studies, {plan.num_cut:,} cut to the context of"
        f" {config.data.context} tokens"
    )
  return state


def _run(config, state, step_fn, iterator, checkpoints, log, mesh) -> None:
  sharding = named_sharding(mesh, ("batch", None))
  summary = functools.partial(_summary, config, mesh)
  window = MetricsWindow(log, config.log_every, summary)
  for step in range(int(state.step) + 1, config.steps + 1):
    local = next(iterator)
    batch = {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}
    state, metrics = step_fn(state, batch)
    context = flops.packed_context(local["positions"], local["segment_ids"])
    window.add(step, {**metrics, "context": context})
    if step % config.checkpoint_every == 0 or step == config.steps:
      window.drain()
      checkpoints.save(state, iterator)


def _summary(
    config: TrainConfig, mesh: jax.sharding.Mesh, step: int, rows: list[Row], seconds: float
) -> Row:
  """A line of metrics.jsonl; see docs/training.md.

  `mfu` is the share of the devices' peak in bfloat16, whatever the model's dtype, that documents
  have use of: (6·N + 6·L·H·K·S) · tokens a second and device / peak. N are the parameters that
  multiply a token (not the embedding), S is the length of its document, as none sees another; and
  padding is no token. Where the table of hardware does not have the device, there is none.
  """
  total = {name: sum(row[name] for row in rows) for name in rows[0]}
  tokens = total["tokens"] / len(rows)
  line = {
      "loss": total["loss_sum"] / max(total["weight"], 1.0),
      "image_nll": total["image_nll"] / max(total["image_tokens"], 1.0),
      "text_nll": total["text_nll"] / max(total["text_tokens"], 1.0),
      "grad_norm": total["grad_norm"] / len(rows),
      "learning_rate": float(learning_rate_schedule(config.optimizer, config.steps)(step - 1)),
      "fill": tokens / (config.data.batch_size * config.data.context),
      "step_seconds": seconds,
      "tokens_per_second": tokens / seconds,
      "tokens_per_second_per_device": tokens / seconds / mesh.size,
  }
  chip = chip_of(mesh.devices.flat[0].device_kind)
  if chip is not None:
    rate = line["tokens_per_second_per_device"]
    line["mfu"] = flops.utilization(config.model, total["context"] / len(rows), rate, chip)
  return line
