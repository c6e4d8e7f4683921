"""Where a run's numbers go: JSON lines, TensorBoard and the progress bar."""

import json
import pathlib

import tensorboardX
from clu import parameter_overview

from chexmix_jax.progress import progress


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

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """One line of metrics for the window that ends with `step`."""
    self._file.write(json.dumps({"step": step, **scalars}) + "\n")
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._bar.close()
    self._board.close()
    self._file.close()


def count_parameters(params) -> int:
  """How many numbers a tree of arrays or of their shapes holds."""
  return parameter_overview.count_parameters(params)
