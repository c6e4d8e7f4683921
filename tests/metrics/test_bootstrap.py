"""Figures of samples are those of the repeated studies, and intervals cover what they should."""

import numpy as np
import pytest

from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Resamples, interval, paired_difference

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=30)
PATIENTS = tuple(f"p{i // 2}" for i in range(30))


def repeated(values, weights):
  return np.repeat(values, weights)


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (bootstrap.mean(VALUES), np.mean),
        (bootstrap.median(VALUES), np.median),
        (bootstrap.of_sums(VALUES[:, None], lambda sums: sums[:, 0]), np.sum),
        (bootstrap.ratio(VALUES, np.full(30, 2.0)), lambda x: np.mean(x) / 2),
    ],
)
def test_a_figure_of_a_sample_is_that_of_its_studies(figure, expected):
  weights = RNG.integers(0, 4, (20, 30))
  found = figure(weights)
  for row, value in zip(weights, found, strict=True):
    assert value == pytest.approx(expected(repeated(VALUES, row)), abs=1e-12)


def test_values_that_are_missing_do_not_count():
  values = np.array([1.0, np.nan, 3.0])
  assert bootstrap.mean(values)(np.array([[1, 1, 1], [1, 5, 3]])).tolist() == [2.0, 2.5]
  assert np.isnan(bootstrap.mean(values)(np.array([[0, 2, 0]])))[0]


def test_an_average_is_of_the_figures_that_there_are():
  first, second = bootstrap.mean(np.array([1.0, np.nan])), bootstrap.mean(np.array([5.0, 3.0]))
  both = bootstrap.average([first, second])
  assert both(np.array([[1, 1], [0, 1]])).tolist() == [2.5, 3.0]


def test_a_sample_has_as_many_patients_and_all_studies_of_each():
  resamples = Resamples(PATIENTS, number=200)
  weights = resamples.weights_RN
  assert weights.shape == (200, 30)
  np.testing.assert_array_equal(weights[:, ::2], weights[:, 1::2])
  assert set(weights[:, ::2].sum(1)) == {15}
  assert 0.3 < (weights == 0).mean() < 0.42  # 1 / e of them are left out.


def test_samples_depend_on_patients_and_seed_alone():
  one, same = Resamples(PATIENTS), Resamples(PATIENTS)
  np.testing.assert_array_equal(one.weights_RN, same.weights_RN)
  assert one.fingerprint == same.fingerprint
  for other in (Resamples(PATIENTS, seed=1), Resamples(PATIENTS[::-1])):
    assert other.fingerprint != one.fingerprint


def test_large_sets_are_taken_in_parts(monkeypatch):
  resamples, figure = Resamples(PATIENTS, number=50), bootstrap.mean(VALUES)
  whole = resamples.replicates(figure)
  monkeypatch.setattr(bootstrap, "_CHUNK", 7 * 30)
  np.testing.assert_allclose(resamples.replicates(figure), whole, rtol=1e-12)
  assert resamples.value(figure) == pytest.approx(VALUES.mean())


def test_the_interval_of_a_mean_has_the_width_of_theory():
  values = np.random.default_rng(1).normal(size=400)
  resamples = Resamples(tuple(map(str, range(400))), number=4000)
  low, high = interval(resamples.replicates(bootstrap.mean(values)))
  half = 1.96 * values.std() / 20
  assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
  assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_studies_of_one_patient_widen_the_interval():
  values = np.repeat(np.random.default_rng(1).normal(size=50), 8)
  figure = bootstrap.mean(values)
  apart = Resamples(tuple(map(str, range(400))))
  together = Resamples(tuple(str(i // 8) for i in range(400)))
  widths = [np.subtract(*interval(r.replicates(figure))[::-1]) for r in (apart, together)]
  assert widths[1] == pytest.approx(widths[0] * np.sqrt(8), rel=0.15)


def test_undefined_samples_are_left_out_of_the_interval():
  assert interval(np.array([np.nan, 2.0, 2.0])) == (2.0, 2.0)
  assert np.isnan(interval(np.full(3, np.nan))).all()


def test_a_paired_difference_is_narrower_than_the_intervals_apart():
  resamples = Resamples(tuple(map(str, range(30))))
  first = resamples.replicates(bootstrap.mean(VALUES))
  second = resamples.replicates(bootstrap.mean(VALUES + 0.1))
  found = paired_difference(first, second)
  assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)
  assert found.p == pytest.approx(2 / 1001)
  same = paired_difference(first, first)
  assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
