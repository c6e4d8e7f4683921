"""Validation while a model trains: losses without dropout, the best step, when to stop."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chexmix_jax import config as config_lib
from chexmix_jax.data.pipeline import DataConfig, EpochStart
from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import Params, TransformerConfig, abstract_params
from chexmix_jax.parallel.devices import STEP_OPTIONS
from chexmix_jax.parallel.distributed import batch_share, whole_batch
from chexmix_jax.parallel.sharding import named_sharding, param_shardings
from chexmix_jax.progress import progress
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.logging import Row
from chexmix_jax.training.step import TrainState, loss_sums, mean_losses
from chexmix_jax.training.trainable import join, merged_params

Score = Callable[[Params, int], dict[str, float]]
"""Plain parameters of the model and their step -> EVALUATION/FIGURE -> number."""

LOSSES = ("loss", "image_nll", "text_nll")

_RISE = 0.01
"""Of the validation loss above its least, as a share, from which on it counts as a rise."""

_LOWER_IS_BETTER = (
    "loss", "nll", "perplexity", "brier", "median_rank", "l1", "lpips", "fid", "unfinished",
    "num_empty",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluationInputs:
  """What an evaluation reads, if `ValidationConfig.metric` is a figure of one; paths.

  Attributes:
    studies: output of prepare.
    tokens: output of tokenize, of these studies.
    image_tokenizer: its folder.
    text_tokenizer: its model file, or a folder with vocab.json and merges.txt.
    protocol: config file of `evaluate`, empty for configs/evaluate.py:validation; whatever its
      `split`, val is scored.
  """

  studies: str = ""
  tokens: str = ""
  image_tokenizer: str = ""
  text_tokenizer: str = ""
  protocol: str = ""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
  """Validation before the first step and at every checkpoint.

  Attributes:
    studies: documents of the val split at most, and as many of the train split.
    metric: what the best checkpoint is chosen by: `loss`, `image_nll` or `text_nll` of the val
      split, or a figure of an evaluation such as `generation/finding_f1_micro`.
    patience: validations in a row without a better metric, after which the run ends; 0 for never.
    evaluation: for a figure of an evaluation.
  """

  studies: int = 500
  metric: str = "loss"
  patience: int = 0
  evaluation: EvaluationInputs = dataclasses.field(default_factory=EvaluationInputs)

  def __post_init__(self):
    config_lib.check_at_least_one(self, ("studies",), "a validation")
    if self.patience < 0:
      raise UserError(f"patience={self.patience} of a validation must not be negative.")
    if self.metric not in LOSSES and not self.is_evaluation:
      raise UserError(
          f"metric={self.metric!r} of a validation must be one of {', '.join(LOSSES)}, or"
          " EVALUATION/FIGURE, such as generation/finding_f1_micro."
      )

  @property
  def is_evaluation(self) -> bool:
    """Whether the metric is a figure of an evaluation."""
    return "/" in self.metric


def is_lower_better(metric: str) -> bool:
  """Whether less of a metric is better, by its name: losses, errors, ranks."""
  return any(
      part == name or part.endswith(f"_{name}")
      for part in metric.split("/")
      for name in _LOWER_IS_BETTER
  )


class Validator:
  """Losses of the first documents of val and train, without dropout; and the metric.

  Documents, masks and weights are those of the training. The batches are micro-batches of the
  training, over the same mesh, so that a pass takes less memory than a step.
  """

  def __init__(
      self,
      config: ValidationConfig,
      data: DataConfig,
      accumulation: int,
      model: TransformerConfig,
      vocabulary: Vocabulary,
      abstract: TrainState,
      mesh: Mesh,
      score: Score | None = None,
  ):
    """`abstract` gives the shardings of the states to come; `score` the figures of an evaluation.

    Raises UserError for tokens without a val split, and for a figure without `score`.
    """
    if config.is_evaluation and score is None:
      raise UserError(
          f"validation.metric={config.metric!r} is a figure of an evaluation, which only"
          " python -m chexmix_jax.train computes; use one of its losses here."
      )
    self._config, self._model, self._score = config, model, score
    rows = data.batch_size // accumulation
    self._sharding = named_sharding(mesh, ("batch", None))
    share = batch_share(self._sharding, rows)
    self._rows = rows
    findings = model.classifier.findings if model.classifier else ()
    self._splits = {
        split: EpochStart(data, split, config.studies, rows, *share, findings)
        for split in ("val", "train")
    }
    self._sums = _jit_sums(model, vocabulary, abstract, mesh)
    plain = abstract_params(dataclasses.replace(model, adapter=None))
    self._merge = jax.jit(
        functools.partial(merged_params, model), out_shardings=param_shardings(mesh, plain)
    )

  def __call__(self, state: TrainState) -> Row:
    """A line of validation.jsonl, see docs/training.md. What is not finite is left out."""
    step = int(state.step)
    val, train = (self._losses(state, self._splits[split]) for split in ("val", "train"))
    line = {"step": step, **val, **{f"train_{name}": value for name, value in train.items()}}
    figures = val if self._score is None else self._score(self._plain(state), step)
    metric = self._config.metric
    line[metric] = pick_figure(figures, metric)
    return {name: value for name, value in line.items() if math.isfinite(value)}

  def _losses(self, state: TrainState, batches: EpochStart) -> Row:
    total: dict[str, float] = {}
    quiet = jax.process_index() > 0
    for local in progress(batches, quiet=quiet, desc="validation", unit="batch", leave=False):
      batch = whole_batch(self._sharding, self._rows, local)
      sums = jax.device_get(self._sums(state.params, state.frozen, batch))
      total = {name: total.get(name, 0.0) + float(value) for name, value in sums.items()}
    return mean_losses(total)

  def _plain(self, state: TrainState) -> Params:
    """The parameters of the model, adapted or not."""
    if self._model.adapter is None:
      return state.params
    return self._merge(state.params, state.frozen)


def pick_figure(figures: dict[str, float], metric: str) -> float:
  """One of the figures; UserError with a hint for one that is not there."""
  if metric not in figures:
    near = difflib.get_close_matches(metric, figures, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(figures)}."
    raise UserError(f"validation.metric={metric!r} is nothing that is computed; {hint}")
  return figures[metric]


def _jit_sums(
    config: TransformerConfig, vocabulary: Vocabulary, abstract: TrainState, mesh: Mesh
) -> Callable[[Params, Params, dict[str, jax.Array]], dict[str, jax.Array]]:
  """What the loss of a batch is divided by and made of, without dropout."""

  def sums(params: Params, frozen: Params, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return loss_sums(config, vocabulary, join(params, frozen), batch, None)[1]

  params, frozen = (
      jax.tree.map(lambda leaf: leaf.sharding, part) for part in (abstract.params, abstract.frozen)
  )
  return jax.jit(
      sums,
      in_shardings=(params, frozen, named_sharding(mesh, ("batch", None))),
      out_shardings=NamedSharding(mesh, PartitionSpec()),
      compiler_options=STEP_OPTIONS[mesh.devices.flat[0].platform],
  )


class History:
  """The lines of a run's validations, and what follows from them."""

  def __init__(self, config: ValidationConfig, steps: int, state: dict[str, Any] | None = None):
    """Of a run of `steps` steps; `state` is another history's, to go on from."""
    self._config, self._steps = config, steps
    self.lines: list[Row] = list(state["lines"]) if state else []

  def add(self, line: Row) -> None:
    """Takes the next validation's line."""
    self.lines.append(line)

  def get_state(self) -> dict[str, Any]:
    """For a checkpoint, see Checkpoints.save; for JSON."""
    best = self.best
    return {
        "best": best and int(best["step"]),
        "stopped": self.has_stopped,
        "lines": self.lines,
    }

  @property
  def best(self) -> Row | None:
    """The line of the best checkpoint, the first of equals; None before there is one."""
    return self._best_by(self._config.metric)

  @property
  def has_stopped(self) -> bool:
    """Whether the run ends here, before its last step."""
    patience = self._config.patience
    return 0 < patience <= self._since_best and self.lines[-1]["step"] < self._steps

  @property
  def _checkpoints(self) -> list[Row]:
    return [line for line in self.lines if line["step"] > 0]

  @property
  def _since_best(self) -> int:
    best = self.best
    return sum(best is None or line["step"] > best["step"] for line in self._checkpoints)

  def _best_by(self, metric: str) -> Row | None:
    sign = 1 if is_lower_better(metric) else -1
    lines = [line for line in self._checkpoints if metric in line]
    return min(lines, key=lambda line: sign * line[metric], default=None)

  def describe(self) -> str:
    """The newest line in words."""
    line, best, metric = self.lines[-1], self.best, self._config.metric
    parts = [f"loss {_number(line, 'loss')}", f"of the train split {_number(line, 'train_loss')}"]
    if metric != "loss":
      parts.append(f"{metric} {_number(line, metric)}")
    if best is not None:
      parts.append("the best so far" if best is line else f"the best is of step {best['step']:.0f}")
    return f"validation of step {line['step']:.0f}: {', '.join(parts)}"

  def stop_sentence(self) -> str:
    """Of a run that has stopped."""
    metric, best = self._config.metric, self.best
    named = metric if self._config.is_evaluation else f"{metric} of the val split"
    kept = f"the best checkpoint is of step {best['step']:.0f}" if best else "no checkpoint has it"
    return (
        f"stopped early after step {self.lines[-1]['step']:.0f}: {named} has not improved for"
        f" {self._since_best} validations; {kept}"
    )

  def summary(self) -> str:
    """A table of losses without dropout, before the first step, at the best and the last one."""
    columns = [("train loss", "train_loss"), ("val loss", "loss"), ("gap", "")]
    if self._config.metric != "loss":
      columns.append((self._config.metric, self._config.metric))
    names = [name for name, _ in columns]
    widths = [max(10, len(name)) for name in names]
    rows = [("", "step", *names)]
    for caption, line in (
        ("start", self.lines[0]), ("best", self.best), ("last", self.lines[-1])
    ):  # fmt: skip
      if line is not None:
        gap = {"": line["loss"] - line["train_loss"]} if {"loss", "train_loss"} <= set(line) else {}
        numbers = (_number(line | gap, key) for _, key in columns)
        rows.append((caption, f"{line['step']:.0f}", *numbers))
    lines = []
    for caption, step, *cells in rows:
      padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
      lines.append("  ".join([f"{caption:5}", f"{step:>7}", *padded]))
    return "\n".join(lines)

  def overfit_sentence(self) -> str | None:
    """A warning where the validation loss rose from its least, and the training loss went on
    falling."""
    least, last = self._best_by("loss"), self.lines[-1]
    if least is None or not {"loss", "train_loss"} <= set(least) & set(last):
      return None
    has_risen = last["loss"] > (1 + _RISE) * least["loss"]
    if not has_risen or last["train_loss"] >= least["train_loss"]:
      return None
    best = self.best
    kept = f"the checkpoint of step {best['step']:.0f} is kept as the best; " if best else ""
    return (
        f"the run overfits from step {least['step']:.0f} on: until step {last['step']:.0f} the loss"
        f" of the val split rose from {_number(least, 'loss')} to {_number(last, 'loss')}, while"
        f" that of the train split fell from {_number(least, 'train_loss')} to"
        f" {_number(last, 'train_loss')}; {kept}train for fewer steps, with more dropout or with a"
        " smaller rank."
    )


def _number(line: Row, name: str) -> str:
  return f"{line[name]:.4f}" if name in line else "undefined"
