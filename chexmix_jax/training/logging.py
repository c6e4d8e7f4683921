"""Where a run's numbers go: JSON lines, TensorBoard and the progress bar."""

import collections
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tensorboardX
from clu import parameter_overview

from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole
from chexmix_jax.progress import progress

Row = dict[str, float]


class RunLog:
  """Appends metrics to `metrics.jsonl` and TensorBoard, and drives a bar with time left.

  A run that was stopped after its last checkpoint repeats some steps: on opening, lines of steps
  that will be done again are dropped, so that every step stands in the file once.
  """

  def __init__(self, run_dir: pathlib.Path, first_step: int, steps: int, description: str):
    self._path = run_dir / "metrics.jsonl"
    if self._path.exists():
      lines = self._path.read_text().splitlines(keepends=True)
      write_whole(self._path, "".join(line for line in lines if _step_of(line) <= first_step))
    self._file = self._path.open("a")
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


def _step_of(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except ValueError:
    return math.inf  # Cut short when the machine stopped.


class MetricsWindow:
  """Metrics of the steps since the last line; fetched two steps late, so devices never wait.

  A line is written after every multiple of `every` steps and before every checkpoint, so that the
  lines are the same whether or not a run was stopped between. `summarise(step, rows, seconds)`
  makes one of the steps' metrics and their median seconds.
  """

  def __init__(
      self,
      log: RunLog,
      every: int,
      summarise: Callable[[int, list[Row], float], Row],
  ):
    self._log, self._every, self._summarise = log, every, summarise
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()
    self._rows: list[Row] = []
    self._times = [time.perf_counter()]

  def add(self, step: int, metrics: Mapping[str, jax.Array | float]) -> None:
    """Takes the metrics of a step that may still be running; looks at those of two steps ago."""
    self._pending.append((step, metrics))
    if len(self._pending) > 2:
      self._consume()

  def drain(self) -> None:
    """Waits for all steps; before a checkpoint, as a loss that is not finite must not be saved."""
    while self._pending:
      self._consume(line=len(self._pending) == 1)

  def _consume(self, line: bool = False) -> None:
    step, metrics = self._pending.popleft()
    row = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
      raise UserError(
          f"The loss or its gradient is not finite at step {step} (batch {step} of the data order);"
          " train again with a lower learning_rate into another --output."
      )
    self._rows.append(row)
    self._times.append(time.perf_counter())
    self._log.advance(row["loss"])
    if line or step % self._every == 0:
      seconds = float(np.median(np.diff(self._times)))
      self._log.write(step, self._summarise(step, self._rows, seconds))
      self._rows, self._times = [], self._times[-1:]


def count_parameters(params: Any) -> int:
  """How many numbers a tree of arrays or of their shapes holds."""
  return parameter_overview.count_parameters(params)
