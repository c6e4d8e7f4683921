"""ROUGE-L against pycocoevalcap 1.2: its numbers, and itself where it is installed."""

import numpy as np
import pytest

from chexmix_jax.metrics.rouge_l import corpus_rouge_l, rouge_l, signature

# Of 1.2's Rouge, rounded at the 9th place. Both empty is 1 there.
ONE = [1, 0.456074766, 0.39524838, 0.273542601, 0.457957958, 1, 0, 0, 0, 1]
SEVERAL = [1, 0.782051282, 0.829931973, 0.579113924, 1, 1]


def test_scores_are_pycocoevalcaps(one_reference, several_references):
  np.testing.assert_allclose(rouge_l(*one_reference, "whitespace"), ONE, atol=1e-8)
  np.testing.assert_allclose(rouge_l(*several_references, "whitespace"), SEVERAL, atol=1e-8)
  assert corpus_rouge_l(*one_reference, "whitespace") == pytest.approx(0.458282371, abs=1e-8)
  assert corpus_rouge_l(*several_references, "whitespace") == pytest.approx(0.865182863, abs=1e-8)


def test_scores_equal_pycocoevalcap_as_installed(random_items, as_captions):
  rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
  corpus, items = rouge.Rouge().compute_score(*as_captions(*random_items))
  np.testing.assert_allclose(rouge_l(*random_items, "whitespace"), items, atol=1e-12)
  assert corpus_rouge_l(*random_items, "whitespace") == pytest.approx(corpus, abs=1e-12)


def test_the_rule_cuts_both_sides():
  assert corpus_rouge_l(["Clear, both."], ["clear both"]) == 1
  assert corpus_rouge_l(["Clear, both."], ["clear both"], "whitespace") == 0
  assert signature("whitespace").endswith("words:whitespace")
