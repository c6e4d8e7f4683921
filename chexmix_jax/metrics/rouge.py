"""ROUGE-1, ROUGE-2 and ROUGE-L of reports (Lin 2004), as in rouge-score without its stemmer.

Words are cut by rouge-score's own rule, words.RULES["lower_alphanumeric"].
"""

from collections.abc import Sequence

import numpy as np

from chexmix_jax.metrics.lcs import lcs_length
from chexmix_jax.metrics.ngrams import count_ngrams
from chexmix_jax.metrics.words import References, cut_pairs

_RULE = "lower_alphanumeric"
_TYPES = ("rouge1", "rouge2", "rougeL")
_PARTS = ("precision", "recall", "f1")


def signature() -> str:
  """What to print beside the scores."""
  return f"ROUGE|beta:1|references:best-f1|stemmer:no|as:rouge-score-0.1.2|words:{_RULE}"


def rouge(candidates: Sequence[str], references: References) -> dict[str, np.ndarray]:
  """`rouge1_precision`, `rouge1_recall`, `rouge1_f1`, the same of `rouge2` and `rougeL`.

  Each in [0, 1], float64 (N,): precision and recall are the shares of the candidate's and of the
  reference's words (rouge1), pairs of words (rouge2) or words (rougeL, of the longest common
  subsequence) that they have in common. Of several references that of the largest F1 counts, by
  itself for each of the three, as in rouge-score's score_multi. Where a text has no words, or no
  pair of them, all are 0, as there. Raises UserError as cut_pairs does.
  """
  items = []
  for pair in cut_pairs(candidates, references, _RULE):
    found = [_scores(pair.candidate, reference) for reference in pair.references]
    # max keeps the first of equals.
    items.append([max(scores, key=lambda score: score[-1]) for scores in zip(*found, strict=True)])
  scores_NTP = np.array(items)
  return {
      f"{name}_{part}": scores_NTP[:, t, p]
      for t, name in enumerate(_TYPES)
      for p, part in enumerate(_PARTS)
  }


def _scores(candidate: Sequence[str], reference: Sequence[str]) -> list[tuple[float, ...]]:
  """Precision, recall and F1 of each of _TYPES."""
  scores = []
  for n in (1, 2):
    ours, theirs = count_ngrams(candidate, n), count_ngrams(reference, n)
    scores.append(_precision_recall_f1((ours & theirs).total(), ours.total(), theirs.total()))
  common = lcs_length(candidate, reference)
  return [*scores, _precision_recall_f1(common, len(candidate), len(reference))]


def _precision_recall_f1(common: int, candidate: int, reference: int) -> tuple[float, ...]:
  if not common:
    return 0.0, 0.0, 0.0
  precision, recall = common / candidate, common / reference
  # Of counts it would round otherwise, and another of two references be the best.
  return precision, recall, 2 * precision * recall / (precision + recall)


def corpus_rouge(candidates: Sequence[str], references: References) -> dict[str, float]:
  """The means over the items, by the same names. Raises UserError as cut_pairs does."""
  return {name: float(values_N.mean()) for name, values_N in rouge(candidates, references).items()}
