"""ROUGE against rouge-score 0.1.2: its numbers, and itself where it is installed."""

import numpy as np
import pytest

from chexmix_jax.metrics.rouge import corpus_rouge, rouge

NAMES = [
    f"{name}_{part}"
    for name in ("rouge1", "rouge2", "rougeL")
    for part in ("precision", "recall", "f1")
]
# Of 0.1.2's RougeScorer (score_multi), rounded at the 9th place, in the order of NAMES.
ONE = [
    [1, 1, 1, 1, 1, 1, 1, 1, 1],
    [0.571428571, 0.4, 0.470588235, 0.5, 0.333333333, 0.4, 0.571428571, 0.4, 0.470588235],
    [1, 0.875, 0.933333333, 0.333333333, 0.285714286, 0.307692308, 0.428571429, 0.375, 0.4],
    [1, 0.181818182, 0.307692308, 1, 0.1, 0.181818182, 1, 0.181818182, 0.307692308],
    [0.294117647, 0.833333333, 0.434782609, 0.1875, 0.6, 0.285714286, 0.294117647, 0.833333333,
     0.434782609],
    [1, 1, 1, 0, 0, 0, 1, 1, 1],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
]  # fmt: skip
SEVERAL = [
    [1, 1, 1, 1, 1, 1, 1, 1, 1],
    [0.833333333, 0.714285714, 0.769230769, 0.6, 0.5, 0.545454545, 0.833333333, 0.714285714,
     0.769230769],
    [0.666666667, 1, 0.8, 0.5, 1, 0.666666667, 0.666666667, 1, 0.8],
    [1, 0.666666667, 0.8, 0.666666667, 0.4, 0.5, 0.75, 0.5, 0.6],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 1, 1, 1],
]  # fmt: skip
RAW = (
    ["The heart's size is NORMAL; no follow-up.", "3.5 cm nodule, L1-L2", "...", "Größe normal"],
    ["Heart size: normal (no follow-up needed).", "A nodule of 3.5cm", "No effusion.",
     "Grösse normal"],
)  # fmt: skip
RAW_SCORES = [
    [0.666666667, 0.857142857, 0.75, 0.375, 0.5, 0.428571429, 0.666666667, 0.857142857, 0.75],
    [0.333333333, 0.4, 0.363636364, 0, 0, 0, 0.166666667, 0.2, 0.181818182],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0.666666667, 0.666666667, 0.666666667, 0, 0, 0, 0.666666667, 0.666666667, 0.666666667],
]


def in_columns(scores):
  assert list(scores) == NAMES
  return np.stack(list(scores.values()), axis=-1)


def test_scores_are_those_of_rouge_score(one_reference, several_references):
  np.testing.assert_allclose(in_columns(rouge(*one_reference)), ONE, atol=1e-8)
  np.testing.assert_allclose(in_columns(rouge(*several_references)), SEVERAL, atol=1e-8)
  np.testing.assert_allclose(in_columns(rouge(*RAW)), RAW_SCORES, atol=1e-8)
  np.testing.assert_allclose(
      in_columns(corpus_rouge(*several_references)), np.mean(SEVERAL, axis=0), atol=1e-8
  )


def test_scores_equal_rouge_score_as_installed(random_items):
  rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
  scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
  theirs = [
      np.concatenate(list(scorer.score_multi(references, candidate).values()))
      for candidate, references in zip(*random_items, strict=True)
  ]
  np.testing.assert_allclose(in_columns(rouge(*random_items)), theirs, atol=1e-12)
