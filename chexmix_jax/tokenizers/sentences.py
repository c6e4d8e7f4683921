"""Where the sentences of a text end, by its ids alone."""

import numpy as np

from chexmix_jax.tokenizers.text import TextTokenizer

_ENDS = (".", "!", "?")


class SentenceEnds:
  """Gives the lengths at which a text's ids can be cut between two sentences."""

  def __init__(self, tokenizer: TextTokenizer):
    # Behind a word, as a decoder drops a text's first space.
    word = tokenizer.decode(tokenizer.encode("a"))
    start = tokenizer.encode("a")
    pieces = [tokenizer.decode([*start, i])[len(word) :] for i in range(tokenizer.vocab_size)]
    self._ends = np.array([piece.rstrip().endswith(_ENDS) for piece in pieces])
    self._spaced = np.array([piece[:1].isspace() for piece in pieces])

  def __call__(self, ids: np.ndarray) -> np.ndarray:
    """int32 lengths, rising: after a full stop that a space or nothing follows."""
    if not len(ids):
      return np.zeros(0, np.int32)
    followed = np.append(self._spaced[ids[1:]], True)
    return (np.flatnonzero(self._ends[ids] & followed) + 1).astype(np.int32)
