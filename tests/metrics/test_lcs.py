import numpy as np

from chexmix_jax.metrics.lcs import lcs_length


def by_table(first, second):
  table = np.zeros((len(first) + 1, len(second) + 1), int)
  for i, word in enumerate(first, 1):
    for j, other in enumerate(second, 1):
      same = table[i - 1, j - 1] + 1
      table[i, j] = same if word == other else max(table[i - 1, j], table[i, j - 1])
  return table[-1, -1]


def test_lengths_are_those_of_the_table():
  rng = np.random.default_rng(0)
  for _ in range(100):
    first, second = (rng.choice(list("abcde"), rng.integers(0, 30)).tolist() for _ in range(2))
    assert lcs_length(first, second) == by_table(first, second)
  # Of more words than a machine's word has bits.
  first, second = (rng.choice(list("abcdefgh"), 200).tolist() for _ in range(2))
  assert lcs_length(first, second) == by_table(first, second) > 64
