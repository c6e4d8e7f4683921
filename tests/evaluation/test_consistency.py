"""Findings read from pictures: by hand, against scikit-learn, and of a real probe."""

import numpy as np
import pytest

from chexmix_jax.data import tokens
from chexmix_jax.evaluation import consistency
from chexmix_jax.evaluation.consistency import Probes, Reader

ONCE = np.ones((1, 40))


@pytest.fixture(scope="module")
def probes(context):
  return Probes(context, ("Cardiomegaly", "Fracture", "Edema"), 20, 90, 32)


def test_decisions_are_compared_over_all_findings():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(0)
  before, now = rng.normal(size=(2, 40, 3))
  targets = (rng.random((40, 3)) < 0.4).astype(float)
  figures = Reader(lambda codes: codes, targets).figures(before, now)
  values = {name: float(figure(ONCE)[0]) for name, figure in figures.items()}
  was, is_now = before.ravel() > 0, now.ravel() > 0
  assert values["finding_kappa"] == pytest.approx(metrics.cohen_kappa_score(was, is_now))
  assert values["finding_kept"] == pytest.approx(is_now[was].mean())
  assert values["finding_invented"] == pytest.approx(is_now[~was].mean())
  expected = metrics.roc_auc_score(targets, now, average="macro")
  assert values["finding_auroc"] == pytest.approx(expected, abs=1e-12)


def test_the_same_pictures_agree_and_nothing_read_is_undefined():
  scores = np.array([[1.0], [-1.0], [2.0]])
  same = Reader(lambda codes: codes, np.zeros((3, 1))).figures(scores, scores)
  once = np.ones((1, 3))
  assert same["finding_kappa"](once)[0] == same["finding_kept"](once)[0] == 1
  assert same["finding_invented"](once)[0] == 0 and np.isnan(same["finding_auroc"](once)[0])
  none = Reader(lambda codes: codes, np.zeros((3, 1))).figures(-abs(scores), -abs(scores))
  assert np.isnan(none["finding_kappa"](once)[0]) and np.isnan(none["finding_kept"](once)[0])


def test_the_threshold_divides_best():
  scores = np.array([0.1, 0.2, 0.3, 0.8, 0.9])
  assert consistency._youden(scores, np.array([0, 0, 0, 1, 1], bool)) == pytest.approx(0.55)
  assert consistency._youden(scores, np.array([0, 0, 1, 0, 1], bool)) == pytest.approx(0.25)


def test_a_probe_reads_whole_pictures_better_than_shuffled_ones(probes, context, params):
  assert probes.findings == ["Cardiomegaly", "Edema"]
  reader = probes.fit(params)
  codes = tokens.load_tokens(context.tokens, "test").codes[:20]
  original = reader.scores(codes)
  whole = reader.figures(original, original)["finding_auroc"](np.ones((1, 20)))[0]
  shuffled = reader.figures(original, reader.scores(codes[::-1]))
  assert whole > 0.7 > shuffled["finding_kappa"](np.ones((1, 20)))[0]
