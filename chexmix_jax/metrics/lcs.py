"""The longest common subsequence of two sequences of words."""

from collections.abc import Sequence


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
  """The most words that stand in both, in the same order and not necessarily side by side.

  A row of the usual table of lengths grows by at most 1 from one word to the next: it is kept as
  the bits of one number, 0 where it grows, and a word of `second` is one sum of such numbers
  (Hyyrö, Bit-parallel LCS-length computation revisited, 2004).
  """
  places: dict[str, int] = {}
  for i, word in enumerate(first):
    places[word] = places.get(word, 0) | 1 << i
  everywhere = (1 << len(first)) - 1
  row = everywhere
  for word in second:
    met = row & places.get(word, 0)
    row = ((row + met) | (row - met)) & everywhere
  return len(first) - row.bit_count()
