"""BLEU against pycocoevalcap 1.2: its numbers, and itself where it is installed."""

import numpy as np
import pytest

from chexmix_jax.metrics.bleu import bleu_from_sums, bleu_sums, corpus_bleu, signature

# Of 1.2's Bleu(4), rounded at the 9th place.
ONE = [0.541545787, 0.451555112, 0.364406198, 0.303271942]
SEVERAL = [0.852714593, 0.740423553, 0.627198603, 0.521608543]
ONE_ITEMS = [
    [1, 0.37225089, 0.8668779, 0.011108997, 0.277777778, 0.999999998, 0, 0, 0, 0],
    [1, 0.348208823, 0.500492189, 0.011108997, 0.221403721, 0.001, 0, 0, 0, 0],
    [1, 0.316133929, 0.000003515, 0.00011109, 0.145239011, 0.0001, 0, 0, 0, 0],
    [1, 0.267828496, 0.00000001, 0.000011109, 0.000021259, 0.000031623, 0, 0, 0, 0],
]
SEVERAL_ITEMS = [
    [1, 0.846481725, 0.666666666, 0.606530659, 0, 0.999999998],
    [1, 0.655681924, 0.577350269, 0.49523021, 0, 0.001],
    [1, 0.449760529, 0.000006934, 0.420544871, 0, 0.0001],
    [0.999999999, 0.00007118, 0.000004273, 0.000081954, 0, 0.000031623],
]


def test_scores_are_pycocoevalcaps(one_reference, several_references):
  np.testing.assert_allclose(corpus_bleu(*one_reference, "whitespace"), ONE, atol=1e-8)
  np.testing.assert_allclose(corpus_bleu(*several_references, "whitespace"), SEVERAL, atol=1e-8)


def test_scores_of_single_items_are_pycocoevalcaps(one_reference, several_references):
  scores = bleu_from_sums(bleu_sums(*one_reference, "whitespace"))
  np.testing.assert_allclose(scores.T, ONE_ITEMS, atol=1e-8)
  scores = bleu_from_sums(bleu_sums(*several_references, "whitespace"))
  np.testing.assert_allclose(scores.T, SEVERAL_ITEMS, atol=1e-8)


def test_scores_equal_pycocoevalcap_as_installed(random_items, as_captions):
  bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
  corpus, items = bleu.Bleu(4).compute_score(*as_captions(*random_items), verbose=0)
  np.testing.assert_allclose(corpus_bleu(*random_items, "whitespace"), corpus, atol=1e-12)
  ours = bleu_from_sums(bleu_sums(*random_items, "whitespace"))
  np.testing.assert_allclose(ours.T, items, atol=1e-12)


def test_sums_are_those_of_the_definition():
  # "a b" stands twice and is in a reference once; lengths 3 and 7 are as close to 5.
  sums = bleu_sums(["a b a b c"], [["a b x", "b a x y z z z"]], "whitespace")
  np.testing.assert_array_equal(sums, [[2, 2, 0, 0, 5, 4, 3, 2, 5, 3]])


def test_resamples_are_scored_as_if_their_items_were_given(random_items):
  candidates, references = random_items
  chosen = np.random.default_rng(0).integers(0, len(candidates), (5, len(candidates)))
  counts = np.stack([np.bincount(row, minlength=len(candidates)) for row in chosen])
  scores = bleu_from_sums(counts @ bleu_sums(candidates, references))
  assert scores.shape == (5, 4)
  for row, found in zip(chosen, scores, strict=True):
    given = [candidates[i] for i in row], [references[i] for i in row]
    np.testing.assert_allclose(found, corpus_bleu(*given), rtol=0, atol=1e-12)


def test_the_rule_cuts_both_sides():
  np.testing.assert_allclose(corpus_bleu(["No acute FINDINGS today."], ["no acute findings today"]),
                             1, atol=1e-6)  # fmt: skip
  low = corpus_bleu(["No acute FINDINGS today."], ["no acute findings today"], "whitespace")
  np.testing.assert_allclose(low[0], 0.25, atol=1e-6)
  assert signature().endswith("words:lower_no_punctuation")
  assert signature("whitespace").endswith("words:whitespace")


@pytest.mark.parametrize(("candidate", "reference"), [("", ""), ("", "clear lungs"), ("clear", "")])
def test_empty_texts_score_nothing(candidate, reference):
  # pycocoevalcap's traces are left: 6e-9 where a word meets no reference.
  np.testing.assert_allclose(corpus_bleu([candidate], [reference]), 0, atol=1e-8)
