"""Intervals by the bootstrap over patients (Efron 1979): all studies of a patient come together.

Shape suffixes: R samples, N studies, K summed quantities.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

Figure = Callable[[np.ndarray], np.ndarray]
"""A figure of N studies for R samples of them: weights (R, N), how often a sample has each study,
to float64 (R,); NaN where a sample leaves it undefined."""

_LEVEL = 95.0
_CHUNK = 1 << 22  # Weights that a figure is given at a time.


def of_sums(sums_NK: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> Figure:
  """A figure that depends on sums over studies: `function` takes them, (R, K), and gives (R,)."""
  sums_NK = np.asarray(sums_NK, np.float64)
  return lambda weights_RN: function(weights_RN.astype(np.float64) @ sums_NK)


def ratio(numerators_N: np.ndarray, denominators_N: np.ndarray) -> Figure:
  """Sum over sum; NaN where the latter is 0."""

  def function(sums_R2):
    above, below = sums_R2[:, 0], sums_R2[:, 1]
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)

  return of_sums(np.stack([numerators_N, denominators_N], axis=1), function)


def mean(values_N: np.ndarray) -> Figure:
  """The mean of a value of each study; those that have none (NaN) do not count."""
  values_N = np.asarray(values_N, np.float64)
  is_there_N = np.isfinite(values_N)
  return ratio(np.where(is_there_N, values_N, 0.0), is_there_N)


def median(values_N: np.ndarray) -> Figure:
  """The median of a value of each study: the mean of the two in the middle of an even number."""
  order = np.argsort(values_N, kind="stable")
  sorted_N = np.asarray(values_N, np.float64)[order]

  def function(weights_RN):
    ends_RN = np.cumsum(weights_RN[:, order], axis=1, dtype=np.int64)
    totals_R1 = ends_RN[:, -1:]
    low, high = ((ends_RN <= place).sum(1) for place in ((totals_R1 - 1) // 2, totals_R1 // 2))
    return (sorted_N[low] + sorted_N[high]) / 2

  return function


def average(figures: Sequence[Figure]) -> Figure:
  """The mean of several figures; in a sample where one is undefined, of the others."""

  def function(weights_RN):
    values_FR = np.stack([figure(weights_RN) for figure in figures])
    is_there_FR = np.isfinite(values_FR)
    counts_R = is_there_FR.sum(0)
    sums_R = np.where(is_there_FR, values_FR, 0.0).sum(0)
    return np.divide(sums_R, counts_R, out=np.full(len(counts_R), np.nan), where=counts_R > 0)

  return function


@dataclasses.dataclass(frozen=True)
class Resamples:
  """Samples with replacement of the patients of N studies, the same for every figure of them.

  Attributes:
    patient_ids: of each study, N strings.
    number: R, of samples.
    seed: they are drawn with; the same patients and seed give the same samples.
  """

  patient_ids: tuple[str, ...]
  number: int = 1000
  seed: int = 0

  @functools.cached_property
  def weights_RN(self) -> np.ndarray:
    """How often each sample has each study, uint16 (R, N)."""
    patients, places_N = np.unique(np.array(self.patient_ids), return_inverse=True)
    count = len(patients)
    rng = np.random.default_rng(self.seed)
    drawn = rng.integers(0, count, (self.number, count))
    drawn += count * np.arange(self.number)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=self.number * count)
    return counts.reshape(self.number, count).astype(np.uint16)[:, places_N]

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of the samples: replicates of two checkpoints are pairs where it is the same."""
    parts = [self.number, self.seed, *self.patient_ids]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

  def value(self, figure: Figure) -> float:
    """The figure of all studies, each once."""
    return float(figure(np.ones((1, len(self.patient_ids)), np.uint16))[0])

  def replicates(self, figure: Figure) -> np.ndarray:
    """The figure of each sample, float64 (R,)."""
    rows = max(1, _CHUNK // max(1, len(self.patient_ids)))
    parts = np.split(self.weights_RN, range(rows, self.number, rows))
    return np.concatenate([figure(part) for part in parts])


def interval(replicates_R: np.ndarray) -> tuple[float, float]:
  """The 95 % percentile interval; NaN where every sample leaves the figure undefined."""
  found = replicates_R[np.isfinite(replicates_R)]
  if not len(found):
    return float("nan"), float("nan")
  low, high = np.percentile(found, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
  return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Difference:
  """What a second checkpoint has more than a first on the same studies.

  Attributes:
    low: of the 95 % interval of the difference.
    high: of the same.
    p: two-sided achieved significance level (Efron & Tibshirani 1993, section 15.4), by the share
      of samples in which the difference lies on either side of zero; never below 1 / (R + 1).
  """

  low: float
  high: float
  p: float


def paired_difference(first_R: np.ndarray, second_R: np.ndarray) -> Difference:
  """From the replicates of both over the same samples: float64 (R,) each."""
  differences = second_R - first_R
  differences = differences[np.isfinite(differences)]
  count = len(differences)
  tails = [np.sum(differences <= 0), np.sum(differences >= 0)]
  p = min(1.0, 2 * (1 + min(tails)) / (count + 1)) if count else float("nan")
  return Difference(*interval(differences), float(p))
