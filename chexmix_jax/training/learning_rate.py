"""A range test of the learning rate (Smith 2017, arXiv 1506.01186): the rate rises step by step."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.progress import progress
from chexmix_jax.training.optimizer import optimizer_on
from chexmix_jax.training.setup import Setup, TrainConfig, set_up

_DIVERGED = 4.0
"""Times the least smoothed loss, from which on a run counts as lost."""


@dataclasses.dataclass(frozen=True)
class RangeTest:
  """Rate and loss of each of N steps.

  Attributes:
    rates: (N,), rising geometrically.
    losses: (N,), of the step's batch before its update; finite.
    smoothed: (N,), see smooth.
    has_diverged: whether it ended because the loss was lost.
  """

  rates: np.ndarray
  losses: np.ndarray
  smoothed: np.ndarray
  has_diverged: bool

  @property
  def least(self) -> int:
    """Where the smoothed loss is least."""
    return int(self.smoothed.argmin())

  @property
  def steepest(self) -> int:
    """Where the smoothed loss falls fastest over the logarithm of the rate, before its least."""
    slopes = np.gradient(self.smoothed, np.log(self.rates))
    return int(slopes[: self.least + 1].argmin())

  @property
  def suggested(self) -> float:
    """A tenth of the rate with the least loss.

    That place is wide and easy to find; where the loss falls fastest depends on the noise of single
    batches, above all where a trained model is adapted and the loss falls little.
    """
    return float(self.rates[self.least]) / 10

  @property
  def has_fallen(self) -> bool:
    """Whether any rate has lowered the loss by more than twice its scatter from step to step."""
    before = slice(0, self.least + 1)
    scatter = float(np.std(self.losses[before] - self.smoothed[before]))
    return float(self.smoothed[0] - self.smoothed[self.least]) > 2 * scatter


def smooth(losses: np.ndarray, half_width: int) -> np.ndarray:
  """Means over up to `half_width` steps on either side."""
  return np.array([
      losses[max(0, i - half_width) : i + half_width + 1].mean() for i in range(len(losses))
  ])


def run_range_test(
    step: Callable[[], float], low: float, high: float, steps: int
) -> RangeTest:
  """Takes `steps` steps, whose rates rise from `low` to `high`; each gives its loss.

  Ends early where the smoothed loss exceeds 4 times its least, or a loss is not finite.
  """
  half_width, has_diverged = max(1, steps // 20), False
  losses: list[float] = []
  quiet = jax.process_index() > 0
  for _ in progress(range(steps), quiet=quiet, desc="learning rate", unit="step"):
    loss = step()
    if not math.isfinite(loss):
      has_diverged = True
      break
    losses.append(loss)
    smoothed = smooth(np.array(losses), half_width)
    if smoothed[-1] > _DIVERGED * smoothed.min():
      has_diverged = True
      break
  if len(losses) < 2:
    raise UserError(f"The loss is not finite at a learning rate of {low:g}; give a lower --low.")
  rates = np.array([rate_of(i, low, high, steps) for i in range(len(losses))])
  return RangeTest(rates, np.array(losses), smoothed, has_diverged)


def rate_of(step: jax.typing.ArrayLike, low: float, high: float, steps: int):
  """The learning rate of a step, from 0."""
  return low * (high / low) ** (step / max(steps - 1, 1))


def find_learning_rate(config: TrainConfig, low: float, high: float, steps: int) -> RangeTest:
  """A range test of a run: its data, its fresh state (with `init` and adapter), its optimizer.

  Nothing is written. Raises UserError for inputs that do not fit together.
  """
  if not 0 < low < high or steps < 10:
    raise UserError(
        f"The rates must rise from --low={low:g}, above 0, to --high={high:g}, in --steps={steps},"
        " 10 or more."
    )
  optimizer = optimizer_on(config.optimizer, lambda step: rate_of(step, low, high, steps))
  with set_up(config, optimizer) as setup:
    return run_range_test(_stepper(setup), low, high, steps)


def _stepper(setup: Setup) -> Callable[[], float]:
  """Does a step at each call, and gives its loss."""
  state = setup.first_state(setup.load_init())

  def step() -> float:
    nonlocal state
    batch, _ = setup.next_batch()
    state, metrics = setup.step_fn(state, batch)
    return float(jax.device_get(metrics["loss"]))

  return step
