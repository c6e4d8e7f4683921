"""The training loop of both stages."""

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import sys

import jax

from chexmix_jax.errors import Stopped, UserError
from chexmix_jax.models import flops
from chexmix_jax.parallel import distributed
from chexmix_jax.parallel.distributed import StopRequest
from chexmix_jax.parallel.hardware import chip_of
from chexmix_jax.parallel.sharding import check_sharded
from chexmix_jax.training.checkpoint import Checkpoints, saved_steps, write_job
from chexmix_jax.training.linear_start import with_linear_start
from chexmix_jax.training.logging import (
    MetricsWindow,
    NotFiniteError,
    Row,
    RunLog,
    is_finite,
)
from chexmix_jax.training.optimizer import learning_rate_schedule
from chexmix_jax.training.setup import Setup, TrainConfig, set_up
from chexmix_jax.training.step import TrainState, mean_losses
from chexmix_jax.training.trainable import count_trained
from chexmix_jax.training.validation import History, Score, Validator


def train(
    config: TrainConfig,
    run_dir: pathlib.Path,
    description: str = "train",
    score: Score | None = None,
) -> None:
  """Trains to the last step, going on from the newest checkpoint in `run_dir` where there is one.

  With `config.validation` it may stop before that, and ends with a summary of the validations;
  `score` computes the figures of an evaluation for it.

  Steps whose loss or gradient is not finite are skipped. At SIGTERM it finishes the step, saves a
  checkpoint and raises Stopped. Raises UserError for inputs that do not fit together, for too many
  skipped steps in a row, and for a full disk.
  """
  try:
    jax.devices()  # libtpu takes hold of SIGTERM when it is loaded: before we do.
    with StopRequest() as stop:
      _train(config, run_dir, description, stop, score)
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
    config: TrainConfig,
    run_dir: pathlib.Path,
    description: str,
    stop: StopRequest,
    score: Score | None,
) -> None:
  with set_up(config) as setup:
    config, mesh = setup.config, setup.mesh
    resuming = bool(distributed.exchange("the run directory", saved_steps(run_dir))[0])
    # Whatever does not fit together has come to light before anything is written.
    validator = None
    if config.validation is not None:
      validator = Validator(
          config.validation, config.data, config.accumulation, config.model, setup.vocabulary,
          setup.abstract, mesh, score,
      )  # fmt: skip
    is_frozen = config.model.adapter is not None
    base = setup.load_init() if is_frozen or not resuming else None
    writes = jax.process_index() == 0
    if writes:
      write_job(run_dir, setup.job)
    distributed.exchange("job.json")
    with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
      window_state = validation_state = None
      begins = config.model.classifier is not None and "classifier" not in (base or {})
      if is_frozen or not resuming:
        state = setup.first_state(base)
      del base
      if begins and not resuming:
        state = with_linear_start(setup, state)
      if resuming:
        frozen = state.frozen if is_frozen else {}
        restored = checkpoints.restore(setup.abstract, setup.iterator)
        state, window_state, validation_state = restored
        state = dataclasses.replace(state, frozen=frozen)
      elif writes:
        _describe(config, state, mesh, setup.plan)
      for part in (state.params, state.frozen):
        check_sharded(mesh, part)
      log = RunLog(run_dir, int(state.step), config.steps, description) if writes else None
      with contextlib.closing(log) if log else contextlib.nullcontext():
        summary = functools.partial(_summary, config, mesh)
        window = MetricsWindow(log, config.log_every, summary, config.max_skipped, window_state)
        validation = None
        if config.validation is not None and validator is not None:
          history = History(config.validation, config.steps, validation_state)
          validation = _Validation(validator, history, log)
        distributed.exchange("the first step")
        _run(setup, state, checkpoints, window, stop, run_dir, validation)
  if validation is not None and writes:
    _sum_up(validation.history)


def _describe(config, state, mesh, plan) -> None:
  trained, total = count_trained(config.model)
  if state.frozen:
    share = f"{trained / total:.2%} of the {total:,} of the model, which are frozen"
    print(f"{trained:,} parameters are trained on {mesh.size} device(s), {share}")
  else:
    print(f"{trained:,} parameters on {mesh.size} device(s)")
  print(
      f"{plan.num_studies:,} studies, {plan.num_cut:,} cut to the context of"
      f" {config.data.context} tokens"
  )


@dataclasses.dataclass(frozen=True)
class _Validation:
  """The validations of a run."""

  validator: Validator
  history: History
  log: RunLog | None

  def run(self, state: TrainState) -> None:
    """Validates this state, and notes what was found."""
    self.history.add(self.validator(state))
    if self.log is not None:
      self.log.write_validation(self.history.lines, self.history.describe())


def _run(
    setup: Setup,
    state: TrainState,
    checkpoints: Checkpoints,
    window: MetricsWindow,
    stop: StopRequest,
    run_dir: pathlib.Path,
    validation: _Validation | None = None,
) -> None:
  config = setup.config

  def save() -> None:
    found = validation.history.get_state() if validation else None
    checkpoints.save(state, setup.iterator, window.get_state(), found)

  saved = int(state.step)
  if validation and not validation.history.lines:
    validation.run(state)
  for done in range(saved, config.steps):
    if validation and validation.history.has_stopped:
      return
    if stop.reached(done):
      if done > saved:
        save()
      checkpoints.wait()
      raise Stopped(
          f"stopped by SIGTERM after step {done}; the same command goes on from {_newest(run_dir)}"
      )
    batch, context = setup.next_batch()
    state, metrics = setup.step_fn(state, batch)
    step = done + 1
    window.add(step, {**metrics, "context": context})
    checkpoints.check()
    if step % config.checkpoint_every == 0 or step == config.steps:
      window.drain()
      if validation:
        validation.run(state)
        window.restart_clock()
      save()
      saved = step


def _sum_up(history: History) -> None:
  """Says how the run has ended."""
  if history.has_stopped:
    print(history.stop_sentence())
  print(history.summary())
  if (sentence := history.overfit_sentence()) is not None:
    print(f"WARNING: {sentence}", file=sys.stderr)


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
  losses = {**mean_losses(total), "grad_norm": total["grad_norm"] / max(len(good), 1)}
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
