"""ROUGE-L of reports (Lin 2004) with β 1.2, as in pycocoevalcap's Rouge; rouge.py has β 1."""

from collections.abc import Sequence

import numpy as np

from chexmix_jax.metrics.lcs import lcs_length
from chexmix_jax.metrics.words import DEFAULT_RULE, Pair, References, cut_pairs

_BETA = 1.2
# pycocoevalcap cuts at every single space, which leaves one empty word of an empty text.
_NOTHING = ("",)


def signature(rule: str = DEFAULT_RULE) -> str:
  """What to print beside the score."""
  return f"ROUGE-L|beta:{_BETA}|references:best|as:pycocoevalcap-1.2|words:{rule}"


def rouge_l(
    candidates: Sequence[str], references: References, rule: str = DEFAULT_RULE
) -> np.ndarray:
  """ROUGE-L of every item, in [0, 1], float64 (N,).

  (1 + β²) P R / (R + β² P), where P and R are the shares of the candidate's and of the reference's
  words that are in their longest common subsequence; of several references the largest P and the
  largest R. Equal to pycocoevalcap's, of words joined by a space: 1 where the candidate and a
  reference are empty, 0 where only one of them is. Raises UserError as cut_pairs does.
  """
  return np.array([_score(pair) for pair in cut_pairs(candidates, references, rule)])


def _score(pair: Pair) -> float:
  candidate = pair.candidate or _NOTHING
  precision = recall = 0.0
  for reference in pair.references:
    reference = reference or _NOTHING
    common = lcs_length(candidate, reference)
    precision = max(precision, common / len(candidate))
    recall = max(recall, common / len(reference))
  if not precision:
    return 0.0
  return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def corpus_rouge_l(
    candidates: Sequence[str], references: References, rule: str = DEFAULT_RULE
) -> float:
  """The mean over the items. Raises UserError as cut_pairs does."""
  return float(rouge_l(candidates, references, rule).mean())
