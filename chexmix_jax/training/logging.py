"""Where a run's numbers go: JSON lines, TensorBoard and the progress bar."""

import collections
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from chexmix_jax.errors import UserError
from chexmix_jax.files import write_lines, write_whole
from chexmix_jax.progress import progress

Row = dict[str, float]

_FLUSH_S = 30.0


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
    self._board = _Board(run_dir / "tensorboard", first_step + 1)
    self._bar = progress(total=steps, initial=first_step, desc=description, unit="step")

  def advance(self, loss: float) -> None:
    """One step further on the bar."""
    self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    self._bar.update()

  def warn(self, sentence: str) -> None:
    """A line on standard error that leaves the bar whole."""
    self._bar.write(f"WARNING: {sentence}", file=sys.stderr)

  def write(self, step: int, scalars: Row) -> None:
    """One line of metrics for the window that ends with `step`."""
    self._file.write(json.dumps({"step": step, **scalars}) + "\n")
    self._file.flush()
    self._board.write(step, scalars)

  def write_validation(self, lines: Sequence[Row], sentence: str) -> None:
    """`validation.jsonl` with these lines; the last one also for TensorBoard and in words."""
    write_lines(self._path.with_name("validation.jsonl"), lines)
    scalars = {f"validation/{name}": value for name, value in lines[-1].items() if name != "step"}
    self._board.write(int(lines[-1]["step"]), scalars)
    self._bar.write(sentence, file=sys.stderr)

  def sync(self) -> None:
    """Returns when the lines are on the disk: they outlive the machine, as a checkpoint does."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the files; the bar stays where it is."""
    if not self._file.closed:
      self._bar.close()
      self._file.close()
      self._board.close()


class _Board:
  """TensorBoard's file, written at once.

  SummaryWriter writes in a thread; on a full disk the thread ends, and the program waits for it
  for ever.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int):
    folder.mkdir(exist_ok=True)
    self._events = EventsWriter(str(folder / "events"))
    self._flushed = time.monotonic()
    # TensorBoard hides what an earlier start has written of this step and later ones.
    start = SessionLog(status=SessionLog.START)
    self._events.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

  def write(self, step: int, scalars: Row) -> None:
    for name, value in scalars.items():
      summary = scalar(name, value)
      self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
    if time.monotonic() > self._flushed + _FLUSH_S:
      self._events.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._events.close()


def _step_of(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except ValueError:
    return math.inf  # Cut short when the machine stopped.


class NotFiniteError(UserError):
  """Too many steps in a row whose loss or gradient is not finite."""


def is_finite(row: Row) -> bool:
  """Whether a step's loss and gradient are; as `train_step` decides it."""
  return math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])


class MetricsWindow:
  """Metrics of the steps since the last line; fetched two steps late, so devices never wait.

  A line is written after every multiple of `every` steps and when the window is drained.
  `summarise(step, rows, seconds, skipped)` makes one of the steps' metrics, their median seconds,
  and how many steps of the run were skipped so far because they were not finite. After
  `max_skipped` of them in a row comes NotFiniteError. `state` is another window's, to go on from.
  Without a log, in the processes that do not write, the rest is the same.
  """

  def __init__(
      self,
      log: RunLog | None,
      every: int,
      summarise: Callable[[int, list[Row], float, int], Row],
      max_skipped: int = 1,
      state: dict[str, Any] | None = None,
  ):
    self._log, self._every, self._summarise, self._max_skipped = log, every, summarise, max_skipped
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()
    state = state or {"rows": [], "skipped": 0, "skipped_in_a_row": 0}
    self._rows: list[Row] = state["rows"]
    self._skipped: int = state["skipped"]
    self._skipped_in_a_row: int = state["skipped_in_a_row"]
    self._times = [time.perf_counter()]

  def add(self, step: int, metrics: Mapping[str, jax.Array | float]) -> None:
    """Takes the metrics of a step that may still be running; looks at those of two steps ago."""
    self._pending.append((step, metrics))
    if len(self._pending) > 2:
      self._consume()

  def drain(self) -> None:
    """Waits for all steps, and writes a line."""
    while self._pending:
      self._consume(line=len(self._pending) == 1)

  def restart_clock(self) -> None:
    """Leaves the time since the last step out: it went into something else."""
    self._times[-1] = time.perf_counter()

  def get_state(self) -> dict[str, Any]:
    """For a checkpoint: what lines to come need of the steps so far, for JSON; waits for them."""
    while self._pending:
      self._consume()
    if self._log:
      self._log.sync()
    return {
        "rows": [*self._rows],
        "skipped": self._skipped,
        "skipped_in_a_row": self._skipped_in_a_row,
    }

  def _consume(self, line: bool = False) -> None:
    step, metrics = self._pending.popleft()
    row = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self._count_skipped(step, is_finite(row))
    self._rows.append(row)
    self._times.append(time.perf_counter())
    if self._log:
      self._log.advance(row["loss"])
    if line or step % self._every == 0:
      seconds = float(np.median(np.diff(self._times)))
      if self._log:
        self._log.write(step, self._summarise(step, self._rows, seconds, self._skipped))
      self._rows, self._times = [], self._times[-1:]

  def _count_skipped(self, step: int, finite: bool) -> None:
    if finite:
      self._skipped_in_a_row = 0
      return
    self._skipped += 1
    self._skipped_in_a_row += 1
    if self._skipped_in_a_row >= self._max_skipped:
      before = f" and in the {self._max_skipped - 1} before it" if self._max_skipped > 1 else ""
      raise NotFiniteError(
          f"The loss or its gradient is not finite at step {step} (batch {step} of the data order)"
          f"{before}; train again with a lower learning_rate into another --output."
      )
    if self._log:
      self._log.warn(f"step {step} is skipped: its loss or gradient is not finite.")


def read_metrics(run_dir: pathlib.Path) -> list[Row]:
  """The lines of a run's metrics.jsonl, none where it has not written any."""
  path = run_dir / "metrics.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def count_parameters(params: Any) -> int:
  """How many numbers a tree of arrays or of their shapes holds."""
  return parameter_overview.count_parameters(params)
