"""BLEU-1 to BLEU-4 of a set of reports (Papineni et al. 2002), as in pycocoevalcap's Bleu(4).

Shape suffixes: N items, S = 10 sums, K = 4 orders of BLEU.
"""

from collections.abc import Sequence

import numpy as np

from chexmix_jax.metrics.ngrams import count_ngrams
from chexmix_jax.metrics.words import DEFAULT_RULE, Pair, References, cut_pairs

_ORDERS = 4
# What pycocoevalcap adds above and below every fraction, so that none is 0 / 0.
_ABOVE = 1e-15
_BELOW = 1e-9


def signature(rule: str = DEFAULT_RULE) -> str:
  """What to print beside the scores."""
  return f"BLEU|n:1-4|reference-length:closest|as:pycocoevalcap-1.2|words:{rule}"


def bleu_sums(
    candidates: Sequence[str], references: References, rule: str = DEFAULT_RULE
) -> np.ndarray:
  """What BLEU adds up over items, int64 (N, 10).

  Columns 0-3: runs of 1, 2, 3 and 4 words of the candidate that are in a reference, each counted at
  most as often as in the reference that has it most; 4-7: all such runs of the candidate; 8: its
  words; 9: the words of the reference of the closest length, of two as close the shorter. The sums
  over any choice of items, with repetition or without, are the columns of that choice:
  `bleu_from_sums(counts_RN @ sums_NS)` scores R resamples. Raises UserError as cut_pairs does.
  """
  return np.array([_sums(pair) for pair in cut_pairs(candidates, references, rule)], np.int64)


def _sums(pair: Pair) -> list[int]:
  matches, totals = [], []
  for n in range(1, _ORDERS + 1):
    counts = count_ngrams(pair.candidate, n)
    most = count_ngrams(pair.references[0], n)
    for reference in pair.references[1:]:
      most |= count_ngrams(reference, n)
    matches.append((counts & most).total())
    totals.append(counts.total())
  length = len(pair.candidate)
  closest = min(map(len, pair.references), key=lambda other: (abs(other - length), other))
  return [*matches, *totals, length, closest]


def bleu_from_sums(sums_S: np.ndarray) -> np.ndarray:
  """BLEU-1 to BLEU-4, in [0, 1], float64 (..., 4) of sums (..., 10) of rows of bleu_sums.

  BLEU-k is the geometric mean of the first k precisions, times exp(1 - reference / candidate
  length) where the candidates are shorter. Single rows give the scores of single items, as
  pycocoevalcap has them. As there, 1e-15 is added to every matched count and to the candidates'
  length, 1e-9 to every total and to the reference length. So nothing of nothing is 1e-6: candidates
  without a word score 0, but single ones of fewer than k words up to 0.03 in BLEU-k.
  """
  sums_S = np.asarray(sums_S, np.float64)
  matches_K, totals_K = sums_S[..., :_ORDERS], sums_S[..., _ORDERS : 2 * _ORDERS]
  products_K = np.cumprod((matches_K + _ABOVE) / (totals_K + _BELOW), axis=-1)
  means_K = products_K ** (1 / np.arange(1, _ORDERS + 1))
  ratio = (sums_S[..., -2:-1] + _ABOVE) / (sums_S[..., -1:] + _BELOW)
  return means_K * np.exp(np.minimum(1 - 1 / ratio, 0))


def corpus_bleu(
    candidates: Sequence[str], references: References, rule: str = DEFAULT_RULE
) -> np.ndarray:
  """BLEU-1 to BLEU-4 of all items together, in [0, 1], float64 (4,).

  That is pycocoevalcap's, of words joined by a space. Raises UserError as cut_pairs does.
  """
  return bleu_from_sums(bleu_sums(candidates, references, rule).sum(0))
