"""Areas, Brier score and calibration against scikit-learn, by hand where it is not there."""

import numpy as np
import pytest

from chexmix_jax.metrics.classification import (
    auprc_figure,
    auroc,
    auroc_figure,
    brier_figure,
    calibration_curve,
)

ONCE = np.ones((1, 40), np.uint16)


def draw(seed, ties):
  rng = np.random.default_rng(seed)
  scores = rng.normal(size=40)
  return (scores.round(0) if ties else scores), (rng.random(40) < 0.3).astype(float)


@pytest.mark.parametrize("ties", [False, True])
def test_areas_of_samples_are_those_of_scikit_learn(ties):
  metrics = pytest.importorskip("sklearn.metrics")
  for seed in range(5):
    scores, positive = draw(seed, ties)
    weights = np.random.default_rng(seed).integers(0, 3, (10, 40))
    pairs = (
        (auroc_figure(scores, positive), metrics.roc_auc_score),
        (auprc_figure(scores, positive), metrics.average_precision_score),
    )
    for figure, expected in pairs:
      for row, value in zip(weights, figure(weights), strict=True):
        repeated = np.repeat(positive, row), np.repeat(scores, row)
        assert value == pytest.approx(expected(*repeated), abs=1e-12)
    assert auroc(scores, positive) == pytest.approx(auroc_figure(scores, positive)(ONCE)[0])


def test_areas_by_hand():
  scores, positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.0, 0.0, 1.0, 1.0])
  once = np.ones((1, 4), int)
  assert auroc_figure(scores, positive)(once)[0] == 0.75
  assert auprc_figure(scores, positive)(once)[0] == pytest.approx((1 + 2 / 3) / 2)


def test_one_class_leaves_areas_undefined():
  scores, positive = draw(0, False)
  only = (positive > 0).astype(int)[None]
  for figure in (auroc_figure, auprc_figure):
    for weights in (only, 1 - only, 0 * only):
      assert np.isnan(figure(scores, positive)(weights)[0])
    assert np.isnan(figure(scores, np.full(40, np.nan))(ONCE)[0])


def test_unknown_studies_are_left_out():
  scores, positive = draw(1, True)
  unknown = positive.copy()
  unknown[::3] = np.nan
  keep = np.isfinite(unknown)
  for make in (auroc_figure, auprc_figure, brier_figure):
    expected = make(scores[keep], positive[keep])(ONCE[:, keep])
    assert make(scores, unknown)(ONCE) == pytest.approx(expected)


def test_brier_score_is_scikit_learns():
  metrics = pytest.importorskip("sklearn.metrics")
  scores, positive = draw(2, False)
  probabilities = 1 / (1 + np.exp(-scores))
  expected = metrics.brier_score_loss(positive, probabilities)
  assert brier_figure(probabilities, positive)(ONCE)[0] == pytest.approx(expected, abs=1e-12)


def test_calibration_is_scikit_learns():
  calibration = pytest.importorskip("sklearn.calibration")
  scores, positive = draw(3, False)
  probabilities = 1 / (1 + np.exp(-scores))
  found = calibration_curve(probabilities, positive, 5)
  observed, predicted = calibration.calibration_curve(
      positive, probabilities, n_bins=5, strategy="quantile"
  )
  np.testing.assert_allclose(found["observed"], observed)
  np.testing.assert_allclose(found["predicted"], predicted)
  assert found["count"].sum() == 40


def test_calibration_of_equal_probabilities_has_one_bin():
  found = calibration_curve(np.full(6, 0.5), np.array([1, 0, 0, 0, 0, np.nan]))
  assert found["observed"].tolist() == [0.2] and found["count"].tolist() == [5]


def test_auroc_counts_the_pairs_that_are_in_order():
  scores = np.array([0.1, 0.4, 0.4, 0.8, 0.4])
  positive = np.array([0, 1, 0, 1, 0])
  # 0.4 beats 0.1 and ties with two; 0.8 beats three.
  assert auroc(scores, positive) == (1 + 0.5 + 0.5 + 3) / 6
  assert auroc(-scores, positive) == (0 + 0.5 + 0.5 + 0) / 6
  assert np.isnan(auroc(scores, np.ones(5)))
  both = auroc(np.stack([scores, -scores], 1), positive[:, None])
  np.testing.assert_array_equal(both, [5 / 6, 1 / 6])


def test_auroc_equals_scikit_learns():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(0)
  for _ in range(20):
    positive = rng.random(500) < 0.1
    scores = (rng.normal(size=500) + positive).round(1).astype(np.float32)  # Many ties.
    np.testing.assert_allclose(
        auroc(scores, positive), metrics.roc_auc_score(positive, scores), rtol=0, atol=1e-12
    )
