"""Scores of findings against scikit-learn, and sides."""

import numpy as np
import pytest

from chexmix_jax.labels import CHEXPERT_5, NEGATIVE, POSITIVE
from chexmix_jax.metrics import findings
from chexmix_jax.metrics.findings import FINDINGS, finding_figures, side_agreement


def scores_of(monkeypatch, true, predicted):
  """The figures of reports that name what the bool arrays say."""
  labels = {"true": true, "predicted": predicted}
  monkeypatch.setattr(
      findings,
      "read_findings",
      lambda texts: np.where(labels[texts[0]], POSITIVE, NEGATIVE),
  )
  figures = finding_figures(["true"] * len(true), ["predicted"] * len(true))
  once = np.ones((1, len(true)))
  return {name: float(figure(once)[0]) for name, figure in figures.items()}


def test_scores_are_scikit_learns_over_the_findings_that_references_have(monkeypatch):
  metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
  rng = np.random.default_rng(0)
  true, predicted = rng.random((2, 40, len(FINDINGS))) < 0.2
  true[:, 3] = False  # Left out of the means over findings; its false positives count otherwise.
  predicted[:, 4] = False
  values = scores_of(monkeypatch, true, predicted)
  there = [i for i in range(len(FINDINGS)) if i != 3]
  for name in ("precision", "recall", "f1"):
    score = getattr(metrics, f"{name}_score")
    micro = score(true, predicted, average="micro")
    macro = score(true[:, there], predicted[:, there], average="macro", zero_division=0)
    np.testing.assert_allclose(values[f"finding_{name}_micro"], micro, rtol=1e-12)
    np.testing.assert_allclose(values[f"finding_{name}_macro"], macro, rtol=1e-12)
  each = metrics.f1_score(true, predicted, average=None, zero_division=0)
  for i, name in enumerate(FINDINGS):
    if i == 3:
      assert f"finding_f1/{name}" not in values
    else:
      np.testing.assert_allclose(values[f"finding_f1/{name}"], each[i], rtol=1e-12)
  five = [FINDINGS.index(name) for name in CHEXPERT_5]
  expected = metrics.f1_score(true[:, five], predicted[:, five], average="micro")
  np.testing.assert_allclose(values["finding_f1_micro_5"], expected, rtol=1e-12)
  assert values["hallucinated"] == np.mean((predicted & ~true).sum(1))
  assert values["missed"] == np.mean((true & ~predicted).sum(1))


def test_nothing_to_find_and_nothing_found_is_no_crash(monkeypatch):
  nothing = np.zeros((3, len(FINDINGS)), bool)
  values = scores_of(monkeypatch, nothing, nothing)
  assert np.isnan(values.pop("side_accuracy")) and set(values.values()) == {0.0}


def test_the_side_counts_where_the_reference_names_one():
  effusion = FINDINGS.index("Pleural Effusion")
  pairs = [
      ("There is a left pleural effusion.", "Small left pleural effusion.", True),
      ("There is a left pleural effusion.", "There is a right pleural effusion.", False),
      ("There is a left pleural effusion.", "There is a pleural effusion.", False),
      ("Bilateral pleural effusions.", "Left pleural effusion. Right pleural effusion.", True),
      ("Bilateral pleural effusions.", "Left pleural effusion.", False),
      ("There is a pleural effusion.", "There is a left pleural effusion.", None),
  ]
  for reference, text, is_right in pairs:
    both = np.zeros((1, len(FINDINGS)), bool)
    assert np.sum(side_agreement([reference], [text], both)) == 0
    both[0, effusion] = True
    expected = (0, 0) if is_right is None else (int(is_right), 1)
    found = side_agreement([reference], [text], both)
    assert tuple(int(part[0]) for part in found) == expected, (reference, text)
