"""Runs of n words."""

import collections
from collections.abc import Sequence


def count_ngrams(words: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
  """How often each run of n words stands in `words`; nothing where those are fewer than n."""
  return collections.Counter(zip(*(words[start:] for start in range(n)), strict=False))
