"""GPT-2's byte-level BPE text tokenizer, from vocab.json and merges.txt."""

import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole
from chexmix_jax.tokenizers.text import extended_fingerprint
from chexmix_jax.tokenizers.vocabulary import WHITE_SPACE_RUNS

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
"""Names of the two files, those of Hugging Face."""

END_OF_TEXT = "<|endoftext|>"


class BPETokenizer:
  """Text to ids in [0, vocab_size) and back, exactly: decode(encode(text)) == text.

  The ids are those of vocab.json, then those of WHITE_SPACE_RUNS, of which the longest that fits is
  taken out of a text before anything else, as CodeGen's tokenizer does. Like it, no space is put
  before a text. Two things differ from the published tokenizer. No text spells a special id:
  `<|endoftext|>` or `<|img|>` in one is read character by character. And decoding drops no space
  before a full stop or a comma, which transformers before its version 5 does unless told not to
  (clean_up_tokenization_spaces).

  Attributes:
    vocab_size: number of ids, that of <|endoftext|> included, which `encode` never gives.
    fingerprint: sha256 over the ids of all tokens and the merges in their order, see TextTokenizer.
    added: tokens added behind the WHITE_SPACE_RUNS.
  """

  def __init__(self, vocab: bytes, merges: bytes, added: Sequence[str] = ()):
    """Takes the two files' content; UserError where it is damaged or does not fit."""
    self.added = tuple(added)
    self._files = {VOCAB_FILE: vocab, MERGES_FILE: merges}
    ids, pairs = _read_vocab(vocab), _read_merges(merges)
    ordinary = ids.keys() - {END_OF_TEXT}
    for left, right in pairs:
      if not {left, right, left + right} <= ordinary:
        raise UserError(
            f"{MERGES_FILE} joins {left!r} and {right!r} where {VOCAB_FILE} has no such tokens or"
            " not what they make; give two files that belong together."
        )
    self._tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs))
    self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    self._tokenizer.decoder = decoders.ByteLevel()
    self._tokenizer.add_tokens(
        [tokenizers.AddedToken(run, normalized=False) for run in WHITE_SPACE_RUNS]
    )
    self._num_base = len(ids) + len(WHITE_SPACE_RUNS)
    self._added_ids = {token: i for i, token in enumerate(self.added, self._num_base)}
    # The longest that fits. (The library would read letters beyond ASCII in its tokens as bytes.)
    longest_first = sorted(self.added, key=len, reverse=True)
    self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if added else None
    self.vocab_size: int = self._num_base + len(self.added)
    facts = json.dumps([sorted(ids, key=ids.__getitem__), pairs, WHITE_SPACE_RUNS])
    base = hashlib.sha256(facts.encode()).hexdigest()
    self.fingerprint: str = extended_fingerprint(base, self.added)

  @classmethod
  def load(
      cls, folder: str | os.PathLike[str], added: Sequence[str] = ()
  ) -> "BPETokenizer":
    """Reads vocab.json and merges.txt of `folder`; UserError when they are missing or unfit."""
    folder = pathlib.Path(folder)
    try:
      vocab, merges = ((folder / name).read_bytes() for name in (VOCAB_FILE, MERGES_FILE))
    except OSError as error:
      raise UserError(
          f"{error.filename} cannot be read; name a folder with {VOCAB_FILE} and {MERGES_FILE}."
      ) from error
    try:
      return cls(vocab, merges, added)
    except UserError as error:
      raise UserError(f"{folder} holds no GPT-2 tokenizer: {error}") from error

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes the two files to `folder`, each whole and byte by byte what was read."""
    folder = pathlib.Path(folder)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      for name, content in self._files.items():
        write_whole(folder / name, content)
    except OSError as error:
      raise UserError(f"{folder} cannot be written ({error}); name another folder.") from error

  def encode(self, text: str) -> list[int]:
    """Ids of the text as it is."""
    if self._split is None:
      return self._tokenizer.encode(text).ids
    ids = []
    for part in self._split.split(text):
      number = self._added_ids.get(part)
      ids += self._tokenizer.encode(part).ids if number is None else [number]
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids in [0, vocab_size); bytes that are no UTF-8 become U+FFFD."""
    texts = []
    for is_added, group in itertools.groupby(map(int, ids), lambda i: i >= self._num_base):
      if is_added:
        texts += [self.added[i - self._num_base] for i in group]
      else:
        texts.append(self._tokenizer.decode(list(group), skip_special_tokens=False))
    return "".join(texts)


def _read_vocab(content: bytes) -> dict[str, int]:
  """Token -> id; UserError for anything but the 256 bytes, more tokens, and END_OF_TEXT last."""
  try:
    ids: Any = json.loads(content)
  except ValueError as error:
    raise UserError(f"{VOCAB_FILE} is no JSON; fetch it again.") from error
  are_ids = isinstance(ids, dict) and all(type(value) is int for value in ids.values())
  if not are_ids or sorted(ids.values()) != list(range(len(ids))):
    raise UserError(
        f"{VOCAB_FILE} must map each token to an id of its own, from 0 on without a gap."
    )
  if ids.get(END_OF_TEXT) != len(ids) - 1:
    raise UserError(
        f"{VOCAB_FILE} must end with {END_OF_TEXT}; leave out the tokens added behind it."
    )
  if missing := set(pre_tokenizers.ByteLevel.alphabet()) - ids.keys():
    raise UserError(
        f"{VOCAB_FILE} lacks {len(missing)} of the 256 bytes; give that of a byte-level BPE."
    )
  return ids


def _read_merges(content: bytes) -> list[tuple[str, str]]:
  """Pairs of tokens, the first to be joined first; UserError for a line of anything else."""
  try:
    lines = content.decode().splitlines()
  except ValueError as error:
    raise UserError(f"{MERGES_FILE} is no UTF-8 text; fetch it again.") from error
  pairs = []
  for number, line in enumerate(lines, start=1):
    if line and not line.startswith("#version"):
      left, _, right = line.partition(" ")
      if not left or not right or " " in right:
        raise UserError(f"Line {number} of {MERGES_FILE} must be two tokens with a space between.")
      pairs.append((left, right))
  return pairs
