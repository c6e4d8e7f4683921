"""CIDEr-D of reports (Vedantam et al. 2015), as in pycocoevalcap's Cider."""

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np

from chexmix_jax.metrics.ngrams import count_ngrams
from chexmix_jax.metrics.words import DEFAULT_RULE, References, cut_pairs

_ORDERS = 4
_SIGMA = 6.0
_SCALE = 10.0

Ngram = tuple[str, ...]


def signature(rule: str = DEFAULT_RULE) -> str:
  """What to print beside the score."""
  options = f"n:1-{_ORDERS}|sigma:{_SIGMA:g}|document-frequency:references"
  return f"CIDEr-D|{options}|as:pycocoevalcap-1.2|words:{rule}"


def cider(
    candidates: Sequence[str], references: References, rule: str = DEFAULT_RULE
) -> np.ndarray:
  """CIDEr-D of every item, in [0, 10], float64 (N,).

  Texts are vectors of the runs of n words: how often a run stands in the text, times log(N / the
  number of items with the run in a reference). 10 times the mean over n = 1 to 4 and over the
  references of their cosine, in which a run of the candidate counts at most as often as in the
  reference, times exp(-(difference in words)² / 2σ²) with σ = 6.

  The weights are those of the set that is given: an item's value is another in another set, and
  means over resampled items keep the weights of the whole set. Equal to pycocoevalcap's, of words
  joined by a space: an empty candidate, an empty reference and a set of one item give 0. Where
  every reference is empty pycocoevalcap fails, and here all are 0. Raises UserError as cut_pairs
  does.
  """
  pairs = cut_pairs(candidates, references, rule)
  counted = [[_count(reference) for reference in pair.references] for pair in pairs]
  frequency: collections.Counter[Ngram] = collections.Counter()
  for of_item in counted:
    frequency.update(set().union(*(counts for orders in of_item for counts in orders)))
  # The same log for both makes what every item has weigh nothing at all, not a rounding error.
  most = math.log(len(pairs))
  weights = {ngram: most - math.log(number) for ngram, number in frequency.items()}
  scores = []
  for pair, of_item in zip(pairs, counted, strict=True):
    candidate = _Vectors(_count(pair.candidate), weights, most)
    found = [candidate.similarity(_Vectors(orders, weights, most)) for orders in of_item]
    scores.append(_SCALE * sum(found) / len(found))
  return np.array(scores)


def _count(words: Sequence[str]) -> list[collections.Counter[Ngram]]:
  return [count_ngrams(words, n) for n in range(1, _ORDERS + 1)]


class _Vectors:
  """The weighted runs of a text by their length in words, from their counts."""

  def __init__(
      self,
      orders: Sequence[Mapping[Ngram, int]],
      weights: Mapping[Ngram, float],
      unknown: float,
  ):
    self._orders = [
        {ngram: number * weights.get(ngram, unknown) for ngram, number in counts.items()}
        for counts in orders
    ]
    self._norms = [math.hypot(*vector.values()) for vector in self._orders]
    self._length = sum(orders[0].values())

  def similarity(self, reference: "_Vectors") -> float:
    """The mean over the runs' lengths, in [0, 1]."""
    total = 0.0
    for ours, theirs, our_norm, their_norm in zip(
        self._orders, reference._orders, self._norms, reference._norms, strict=True
    ):
      if our_norm and their_norm:
        common = ours.keys() & theirs.keys()
        product = math.fsum(min(ours[ngram], theirs[ngram]) * theirs[ngram] for ngram in common)
        total += product / (our_norm * their_norm)
    difference = self._length - reference._length
    return total / _ORDERS * math.exp(-(difference**2) / (2 * _SIGMA**2))


def corpus_cider(
    candidates: Sequence[str], references: References, rule: str = DEFAULT_RULE
) -> float:
  """The mean over the items. Raises UserError as cut_pairs does."""
  return float(cider(candidates, references, rule).mean())
