"""The training loop of both stages."""

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
from typing import Any

import jax

from chexmix_jax import config as config_lib
from chexmix_jax.data.pipeline import DataConfig, make_plan, read_card, train_iterator
from chexmix_jax.data.sources.files import file_sha256
from chexmix_jax.errors import Stopped, UserError
from chexmix_jax.models import flops
from chexmix_jax.models.attention import check_backend
from chexmix_jax.models.transformer import Params, TransformerConfig, abstract_params
from chexmix_jax.parallel import distributed
from chexmix_jax.parallel.distributed import StopRequest, batch_share
from chexmix_jax.parallel.hardware import chip_of
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import check_sharded, named_sharding
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.base import base_card, describe_base, load_base
from chexmix_jax.training.checkpoint import Checkpoints, saved_steps, write_job
from chexmix_jax.training.logging import (
    MetricsWindow,
    NotFiniteError,
    Row,
    RunLog,
    count_parameters,
    is_finite,
)
from chexmix_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)
from chexmix_jax.training.step import TrainState, abstract_state, jit_init_state, jit_train_step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One training run.

  Attributes:
    model: its `vocab_size` is 0 (taken from the tokens) or equal to the tokens' vocabulary.
    steps: optimizer steps in all.
    accumulation: micro-batches a step; `data.batch_size` counts all of them.
    init: run directory whose newest parameters to start from, or "" for fresh ones; with
      `model.adapter` they are what is adapted, and the checkpoints hold only what is trained.
    log_every: steps a line of metrics sums up.
    checkpoint_every: steps between checkpoints; the last step is always kept.
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
    job["base"] = describe_base(pathlib.Path(config.init))
  return job


def train(config: TrainConfig, run_dir: pathlib.Path, description: str = "train") -> None:
  """Trains to the last step, going on from the newest checkpoint in `run_dir` where there is one.

  Steps whose loss or gradient is not finite are skipped. At SIGTERM it finishes the step, saves a
  checkpoint and raises Stopped. Raises UserError for inputs that do not fit together, for too many
  skipped steps in a row, and for a full disk.
  """
  try:
    jax.devices()  # libtpu takes hold of SIGTERM when it is loaded: before we do.
    with StopRequest() as stop:
      _train(config, run_dir, description, stop)
      distributed.exchange("the last checkpoint")
  except NotFiniteError as error:
    newest = _newest(run_dir, "none")
    raise UserError(f"{str(error)[:-1]}; the last good checkpoint is {newest}.") from error
  except (OSError, ValueError) as error:
    # TensorStore raises ValueError.
    if not any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
      raise
    raise UserError(
        f"The disk of {run_dir} is full; make room, and the same command goes on from"
        f" {_newest(run_dir)}."
    ) from error


def _newest(run_dir: pathlib.Path, otherwise: str = "the start") -> str:
  steps = saved_steps(run_dir)
  return str(run_dir / "checkpoints" / str(steps[-1])) if steps else otherwise


def _train(
    config: TrainConfig, run_dir: pathlib.Path, description: str, stop: StopRequest
) -> None:
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
  optimizer = make_optimizer(config.optimizer, config.steps)
  share = batch_share(named_sharding(mesh, ("batch", None)), config.data.batch_size)
  with (
      jax.set_mesh(mesh),
      contextlib.closing(train_iterator(config.data, *share, plan)) as iterator,
  ):
    abstract = abstract_state(config.model, optimizer, mesh)
    step_fn = jit_train_step(
        config.model, vocabulary, optimizer, abstract, mesh, config.accumulation
    )
    resuming = bool(distributed.exchange("the run directory", saved_steps(run_dir))[0])
    # Whatever does not fit together has come to light before anything is written.
    base = None
    is_frozen = config.model.adapter is not None
    if config.init and (is_frozen or not resuming):
      base = _load_init(config, job, mesh)
    writes = jax.process_index() == 0
    if writes:
      write_job(run_dir, job)
    distributed.exchange("job.json")
    with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
      window_state = None
      if is_frozen or not resuming:
        state = _first_state(config, optimizer, abstract, base)
      del base
      if resuming:
        frozen = state.frozen if is_frozen else {}
        state, window_state = checkpoints.restore(abstract, iterator)
        state = dataclasses.replace(state, frozen=frozen)
      elif writes:
        _describe(config, state, mesh, plan)
      for part in (state.params, state.frozen):
        check_sharded(mesh, part)
      log = RunLog(run_dir, int(state.step), config.steps, description) if writes else None
      with contextlib.closing(log) if log else contextlib.nullcontext():
        summary = functools.partial(_summary, config, mesh)
        window = MetricsWindow(log, config.log_every, summary, config.max_skipped, window_state)
        distributed.exchange("the first step")
        _run(config, state, step_fn, iterator, checkpoints, window, stop, run_dir, mesh)


def check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
  """UserError where the rows of a step cannot be shared out evenly."""
  rows = mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation
  if config.data.batch_size < 1 or config.data.batch_size % rows:
    raise UserError(
        f"data.batch_size={config.data.batch_size} must be a positive multiple of {rows} (data x"
        " fsdp devices x accumulation)."
    )


def _load_init(config: TrainConfig, job: dict[str, Any], mesh: jax.sharding.Mesh) -> Params:
  """The parameters of another run, whose ids must mean what the tokens' ids mean."""
  run_dir = pathlib.Path(config.init)
  theirs = base_card(run_dir, job["tokens"], config.model.adapter)
  for key in ("vocabulary", "image_tokenizer", "text_tokenizer"):
    if theirs[key] != job["tokens"][key]:
      raise UserError(
          f"init={run_dir} was trained with another {key.replace('_', ' ')} than the tokens' own;"
          " name another run, or tokens made with the one that it was trained with."
      )
  return load_base(run_dir, config.model, mesh, job.get("base"))


def _first_state(config, optimizer, abstract, base) -> TrainState:
  """Fresh state, born sharded; of a base where there is one, which is used up."""
  return jit_init_state(config.model, optimizer, abstract)(jax.random.key(config.seed), base)


def _describe(config, state, mesh, plan) -> None:
  trained = count_parameters(state.params)
  if state.frozen:
    total = count_parameters(abstract_params(dataclasses.replace(config.model, adapter=None)))
    share = f"{trained / total:.2%} of the {total:,} of the model, which are frozen"
    print(f"{trained:,} parameters are trained on {mesh.size} device(s), {share}")
  else:
    print(f"{trained:,} parameters on {mesh.size} device(s)")
  print(
      f"{plan.num_studies:,} studies, {plan.num_cut:,} cut to the context of"
      f" {config.data.context} tokens"
  )


def _run(config, state, step_fn, iterator, checkpoints, window, stop, run_dir, mesh) -> None:
  sharding = named_sharding(mesh, ("batch", None))
  saved = int(state.step)
  for done in range(saved, config.steps):
    if stop.reached(done):
      if done > saved:
        checkpoints.save(state, iterator, window.get_state())
      checkpoints.wait()
      raise Stopped(
          f"stopped by SIGTERM after step {done}; the same command goes on from {_newest(run_dir)}"
      )
    local = next(iterator)
    batch = {
        name: jax.make_array_from_process_local_data(
            sharding, rows, (config.data.batch_size, *rows.shape[1:])
        )
        for name, rows in local.items()
    }
    state, metrics = step_fn(state, batch)
    step = done + 1
    context = flops.packed_context(local["positions"], local["segment_ids"])
    window.add(step, {**metrics, "context": context})
    checkpoints.check()
    if step % config.checkpoint_every == 0 or step == config.steps:
      window.drain()
      checkpoints.save(state, iterator, window.get_state())
      saved = step


def _summary(
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    step: int,
    rows: list[Row],
    seconds: float,
    skipped: int,
) -> Row:
  """A line of metrics.jsonl; see docs/training.md.

  `mfu` is the share of the devices' peak in bfloat16, whatever the model's dtype, that documents
  have use of: (6·N + 6·L·H·K·S) · tokens a second and device / peak. N are the parameters that
  multiply a token (not the embedding), S is the length of its document, as none sees another; and
  padding is no token. Where the table of hardware does not have the device, there is none.
  """
  good = [row for row in rows if is_finite(row)]
  total = {name: sum(row[name] for row in good) for name in rows[0]}
  tokens = sum(row["tokens"] for row in rows) / len(rows)
  schedule = learning_rate_schedule(config.optimizer, config.steps)
  losses = {"loss": total["loss_sum"] / max(total["weight"], 1.0)}
  for kind in ("image", "text"):
    if f"{kind}_nll" in total:
      losses[f"{kind}_nll"] = total[f"{kind}_nll"] / max(total[f"{kind}_tokens"], 1.0)
  losses["grad_norm"] = total["grad_norm"] / max(len(good), 1)
  line = {
      **(losses if good else {}),
      "learning_rate": float(schedule(max(step - 1 - skipped, 0))),
      "skipped": skipped,
      "fill": tokens / (config.data.batch_size * config.data.context),
      "step_seconds": seconds,
      "tokens_per_second": tokens / seconds,
      "tokens_per_second_per_device": tokens / seconds / mesh.size,
  }
  context = sum(row["context"] for row in rows) / len(rows)
  chip = chip_of(mesh.devices.flat[0].device_kind)
  if chip is not None:
    rate = line["tokens_per_second_per_device"]
    line["mfu"] = flops.utilization(config.model, context, rate, chip)
  return line
