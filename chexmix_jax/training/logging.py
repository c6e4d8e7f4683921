"""Where a run's numbers go: JSON lines, TensorBoard and the progress bar."""

import collections
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tensorboardX
from clu import parameter_overview

from chexmix_jax.errors import UserError
from chexmix_jax.progress import progress

Row = dict[str, float]


class RunLog:
  """Appends metrics to `metrics.jsonl` and TensorBoard, and drives a bar with time left.

  A run that was stopped after its last checkpoint repeats some steps: on opening, lines of steps
  that will be done again are dropped, so that every step stands in the file once.
  """

  def __init__(self, run_dir: pathlib.Path, first_step: int, steps: int, description: str):
    self._path = run_dir / "metrics.jsonl"
    kept = []
    if self._path.exists():
      lines = self._path.read_text().splitlines()
      kept = [line for line in lines if json.loads(line)["step"] <= first_step]
    self._file = self._path.open("w")
    self._file.writelines(line + "\n" for line in kept)
    self._board = tensorboardX.SummaryWriter(
        str(run_dir / "tensorboard"), purge_step=first_step + 1
    )
    self._bar = progress(total=steps, initial=first_step, desc=description, unit="step")

  def advance(self, loss: float) -> None:
    """One step further on the bar."""
    self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    self._bar.update()

  def write(self, step: int, scalars: Row) -> None:
    """One line of metrics for the window that ends with `step`."""
    self._file.write(json.dumps({"step": step, **scalars}) + "\n")
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Closes the files; the bar stays where it is."""
    self._bar.close()
    self._board.close()
    self._file.close()


class MetricsWindow:
  """Metrics of the steps since the last line; fetched two steps late, so devices never wait.

  `summarise(step, rows, seconds)` makes one line of the steps' metrics and their median seconds.
  """

  def __init__(
      self,
      log: RunLog,
      every: int,
      steps: int,
      summarise: Callable[[int, list[Row], float], Row],
  ):
    self._log, self._every, self._steps, self._summarise = log, every, steps, summarise
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()
    self._rows: list[Row] = []
    self._times = [time.perf_counter()]

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that may still be running; looks at those of two steps ago."""
    self._pending.append((step, metrics))
    if len(self._pending) > 2:
      self._consume()

  def drain(self) -> None:
    """Waits for all steps; before a checkpoint, as a loss that is not finite must not be saved."""
    while self._pending:
      self._consume()

  def _consume(self) -> None:
    step, metrics = self._pending.popleft()
    row = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
      raise UserError(
          f"The loss or its gradient is not finite at step {step} (batch {step} of the data order);"
          " start again from the last checkpoint with a lower learning_rate."
      )
    self._rows.append(row)
    self._times.append(time.perf_counter())
    self._log.advance(row["loss"])
    if step % self._every == 0 or step == self._steps:
      seconds = float(np.median(np.diff(self._times)))
      self._log.write(step, self._summarise(step, self._rows, seconds))
      self._rows, self._times = [], self._times[-1:]


def count_parameters(params: Any) -> int:
  """How many numbers a tree of arrays or of their shapes holds."""
  return parameter_overview.count_parameters(params)
