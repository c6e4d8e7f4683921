"""Loading a text tokenizer of either kind, and extending it by tokens."""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence

from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.bpe import MERGES_FILE, VOCAB_FILE, BPETokenizer
from chexmix_jax.tokenizers.text import SentencePieceTokenizer, TextTokenizer, normalise

ADDED_FILE, MODEL_FILE = "added_text_tokens.json", "base.model"
"""In the folder of an extended tokenizer: a list of the tokens, and SentencePiece's model file."""


def load_text_tokenizer(path: str | os.PathLike[str]) -> TextTokenizer:
  """A BPETokenizer from a folder with vocab.json, a SentencePieceTokenizer from a model file.

  Either comes with its added tokens from a folder that `extend_text_tokenizer` has written. Raises
  UserError for a `path` that is none of these.
  """
  path = pathlib.Path(path)
  added = _read_added(path / ADDED_FILE) if (path / ADDED_FILE).exists() else ()
  if (path / VOCAB_FILE).exists():
    return BPETokenizer.load(path, added)
  if added:
    return SentencePieceTokenizer.load(path / MODEL_FILE, added)
  if path.is_file():
    return SentencePieceTokenizer.load(path)
  raise UserError(
      f"{path} is no text tokenizer; name the --output of train_text_tokenizer, or a folder with"
      f" {VOCAB_FILE} and {MERGES_FILE}."
  )


def extend_text_tokenizer(
    path: pathlib.Path, tokens: Sequence[str], output: pathlib.Path
) -> TextTokenizer:
  """Writes the folder `output`: the tokenizer of `path` with `tokens` behind all of its ids.

  A text is searched for these first, wherever they stand, and for the longest of those that fit;
  what is between them is encoded as before. Raises UserError for tokens that cannot be added.
  """
  if output.exists():
    raise UserError(f"{output} is there already; name another --output or delete it.")
  base = load_text_tokenizer(path)
  if base.added:
    raise UserError(f"{path} was extended before; extend its base by all the tokens at once.")
  if not tokens:
    raise UserError("There is no token to add; give one a line.")
  for number, token in enumerate(tokens, start=1):
    if not token or token != normalise(token) or token in tokens[: number - 1]:
      raise UserError(
          f"Token {number}, {token!r}, is empty, repeated, or has white space around it or other"
          " than single spaces; mend that line."
      )
    if len(base.encode(token)) == 1:
      raise UserError(f"{token!r} is a token of the text tokenizer already; leave it out.")
  kind = SentencePieceTokenizer if path.is_file() else BPETokenizer
  tokenizer = kind.load(path, tokens)
  files = (path,) if path.is_file() else (path / VOCAB_FILE, path / MERGES_FILE)
  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  for file in files:
    shutil.copyfile(file, partial / (MODEL_FILE if file == path else file.name))
  (partial / ADDED_FILE).write_text(json.dumps(list(tokens), indent=0), encoding="utf-8")
  partial.rename(output)
  return tokenizer


def _read_added(path: pathlib.Path) -> tuple[str, ...]:
  try:
    added = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged; run extend_text_tokenizer again.") from error
  return tuple(added)
