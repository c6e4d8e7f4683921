"""How well scores tell positives from negatives: AUROC, AUPRC, Brier score, calibration.

Shape suffixes: N studies, R samples of them, G groups of equal scores, B bins.
"""

from collections.abc import Callable

import numpy as np
import scipy.stats

from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure


def auroc(scores_NX: np.ndarray, positive_NX: np.ndarray) -> np.ndarray:
  """Area under the ROC curve down the first axis: float64 (...), NaN where one class is absent.

  The probability that a positive scores above a negative, ties counting half (Mann & Whitney 1947),
  from ranks: exact. `positive_NX` broadcasts against the scores.
  """
  positive_NX = np.broadcast_to(positive_NX, scores_NX.shape).astype(bool)
  ranks_NX = scipy.stats.rankdata(scores_NX, axis=0)
  positives = positive_NX.sum(0)
  pairs = (positives * (len(scores_NX) - positives)).astype(np.float64)
  wins = np.where(positive_NX, ranks_NX, 0.0).sum(0) - positives * (positives + 1) / 2
  return np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0)


def auroc_figure(scores_N: np.ndarray, positive_N: np.ndarray) -> Figure:
  """The same for any sample of the studies; those that are NaN in `positive_N` are left out."""

  def area(positives_RG, negatives_RG):
    below_RG = np.cumsum(negatives_RG, axis=1) - negatives_RG
    wins_R = np.sum(positives_RG * (below_RG + negatives_RG / 2), axis=1)
    pairs_R = positives_RG.sum(1) * negatives_RG.sum(1)
    return np.divide(wins_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)

  return _by_score(scores_N, positive_N, area)


def auprc_figure(scores_N: np.ndarray, positive_N: np.ndarray) -> Figure:
  """Area under the precision-recall curve as average precision, without interpolation.

  The sum over thresholds of (R_n - R_n-1) · P_n, scikit-learn's average_precision_score. NaN where
  no study is positive, or none is negative.
  """

  def area(positives_RG, negatives_RG):
    # From the highest score down.
    positives_RG, negatives_RG = positives_RG[:, ::-1], negatives_RG[:, ::-1]
    true_RG, false_RG = np.cumsum(positives_RG, axis=1), np.cumsum(negatives_RG, axis=1)
    precision_RG = true_RG / np.maximum(true_RG + false_RG, 1)
    sums_R, totals_R = np.sum(positives_RG * precision_RG, axis=1), true_RG[:, -1]
    defined_R = (totals_R > 0) & (false_RG[:, -1] > 0)
    return np.divide(sums_R, totals_R, out=np.full(len(totals_R), np.nan), where=defined_R)

  return _by_score(scores_N, positive_N, area)


def _by_score(
    scores_N: np.ndarray,
    positive_N: np.ndarray,
    area: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Figure:
  """A figure of how many positives and negatives, (R, G) each, have each score, rising."""
  known = np.flatnonzero(np.isfinite(positive_N))
  order = known[np.argsort(scores_N[known], kind="stable")]
  starts = np.flatnonzero(np.diff(scores_N[order], prepend=np.nan) != 0)
  is_positive = positive_N[order] > 0

  def function(weights_RN):
    if not len(order):
      return np.full(len(weights_RN), np.nan)
    sorted_RN = weights_RN[:, order].astype(np.float64)
    positives_RG = np.add.reduceat(sorted_RN * is_positive, starts, axis=1)
    negatives_RG = np.add.reduceat(sorted_RN * ~is_positive, starts, axis=1)
    return area(positives_RG, negatives_RG)

  return function


def brier_figure(probabilities_N: np.ndarray, positive_N: np.ndarray) -> Figure:
  """Mean squared error of the probabilities (Brier 1950); NaN in `positive_N` is left out."""
  return bootstrap.mean((probabilities_N - positive_N) ** 2)


def calibration_curve(
    probabilities_N: np.ndarray, positive_N: np.ndarray, bins: int = 10
) -> dict[str, np.ndarray]:
  """What is predicted and what is there in `bins` bins of equally many studies.

  Returns predicted (B,), the mean probability; observed (B,), the share of positives; count (B,).
  Bins that equal probabilities leave empty are missing. NaN in `positive_N` is left out.
  """
  known = np.isfinite(positive_N)
  probabilities, positive = probabilities_N[known], positive_N[known] > 0
  edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, bins + 1)))
  place = np.searchsorted(edges[1:-1], probabilities, side="right")
  counts = np.bincount(place, minlength=bins)
  used = counts > 0
  sums = np.bincount(place, probabilities, bins), np.bincount(place, positive, bins)
  predicted, observed = (total[used] / counts[used] for total in sums)
  return {"predicted": predicted, "observed": observed, "count": counts[used]}
