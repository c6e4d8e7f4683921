"""CIDEr-D against pycocoevalcap 1.2: its numbers, and itself where it is installed."""

import numpy as np
import pytest

from chexmix_jax.metrics.cider import cider, corpus_cider, signature

# Of 1.2's Cider, rounded at the 9th place.
ONE = [10, 1.553588022, 2.890913922, 0.613317582, 0.28611059, 2.5, 0, 0, 0, 0]
SEVERAL = [6.005396036, 2.270931025, 2.062598513, 1.447122476, 0, 1.41446145]


def test_scores_are_pycocoevalcaps(one_reference, several_references):
  np.testing.assert_allclose(cider(*one_reference, "whitespace"), ONE, atol=1e-8)
  np.testing.assert_allclose(cider(*several_references, "whitespace"), SEVERAL, atol=1e-8)
  assert corpus_cider(*one_reference, "whitespace") == pytest.approx(1.784393011, abs=1e-8)
  assert corpus_cider(*several_references, "whitespace") == pytest.approx(2.200084917, abs=1e-8)


def test_scores_equal_pycocoevalcap_as_installed(random_items, as_captions):
  package = pytest.importorskip("pycocoevalcap.cider.cider")
  corpus, items = package.Cider().compute_score(*as_captions(*random_items))
  np.testing.assert_allclose(cider(*random_items, "whitespace"), items, atol=1e-9)
  assert corpus_cider(*random_items, "whitespace") == pytest.approx(corpus, abs=1e-9)


def test_what_every_item_has_weighs_nothing():
  # 49 items: the logarithm of their number is no round one.
  np.testing.assert_array_equal(cider(["clear lungs"] * 49, ["clear lungs"] * 49), 0)


def test_empty_references_and_one_item_score_nothing():
  np.testing.assert_array_equal(cider(["clear", ""], ["", ""]), 0)
  assert corpus_cider(["clear"], ["clear"]) == 0


def test_the_rule_cuts_both_sides():
  texts = ["Clear, both.", "Effusion."], ["clear both", "normal"]
  assert cider(*texts)[0] == pytest.approx(5)  # Of 1 to 4 words, it has runs of 1 and 2.
  np.testing.assert_array_equal(cider(*texts, "whitespace"), 0)
  assert signature("whitespace").endswith("words:whitespace")
