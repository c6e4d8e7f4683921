"""Loading a text tokenizer of either kind."""

import os
import pathlib

from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.bpe import MERGES_FILE, VOCAB_FILE, BPETokenizer
from chexmix_jax.tokenizers.text import SentencePieceTokenizer, TextTokenizer


def load_text_tokenizer(path: str | os.PathLike[str]) -> TextTokenizer:
  """A BPETokenizer from a folder with vocab.json, a SentencePieceTokenizer from a model file.

  Raises UserError for a `path` that is neither.
  """
  path = pathlib.Path(path)
  if (path / VOCAB_FILE).exists():
    return BPETokenizer.load(path)
  if path.is_file():
    return SentencePieceTokenizer.load(path)
  raise UserError(
      f"{path} is no text tokenizer; name the --output of train_text_tokenizer, or a folder with"
      f" {VOCAB_FILE} and {MERGES_FILE}."
  )
