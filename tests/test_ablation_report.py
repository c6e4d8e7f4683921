"""Figures over seeds, and their differences seed by seed."""

import math

import numpy as np
import pytest
import scipy.stats

from chexmix_jax.ablation_report import compare


def test_differences_have_the_interval_of_the_paired_t_test():
  ours, theirs = [0.61, 0.66, 0.70], [0.60, 0.62, 0.67]
  cell = compare(ours, theirs, False)
  assert (cell.lowest, cell.highest) == (0.61, 0.70)
  assert cell.mean == pytest.approx(np.mean(ours))
  expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
  assert cell.difference == pytest.approx((np.mean(ours) - np.mean(theirs), *expected))
  assert not cell.differs  # 0.027 on average, but 0.01 to 0.04.
  assert compare([0.7, 0.8, 0.9], [0.6, 0.7, 0.801], False).differs
  assert compare([0.6, 0.7, 0.8], [0.7, 0.801, 0.9], False).differs


def test_a_reference_has_no_difference_and_a_single_seed_no_interval():
  assert np.isnan(compare([0.1, 0.2], [0.1, 0.2], True).difference).all()
  middle, low, high = compare([0.3], [0.1], False).difference
  assert middle == pytest.approx(0.2) and math.isnan(low) and math.isnan(high)
  assert not compare([0.3], [0.1], False).differs
  assert not compare([0.3, math.nan], [0.1, 0.2], False).differs
