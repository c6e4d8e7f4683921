"""What a text tokenizer is; SentencePiece's: training, loading, and its exact round trip."""

import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole

# SentencePiece writes a space as this character, so a text cannot keep one of its own.
_SPACE_MARK = "\u2581"
# Longer texts are skipped by the trainer without a word; the default is 4,192 bytes.
_MAX_TEXT_BYTES = 1 << 20
# How the trainer says that there are not so many pieces, and how many there are.
_TOO_MANY = re.compile(r"value <= (\d+)")


def normalise(text: str) -> str:
  """What decode(encode(text)) gives: the text with every run of white space as one space."""
  return " ".join(text.replace(_SPACE_MARK, " ").split())


class TextTokenizer(Protocol):
  """Text to ids and back; chexmix_jax.tokenizers.load reads one from its files.

  Attributes:
    vocab_size: the ids are [0, vocab_size).
    fingerprint: hex; equal for tokenizers that give the same ids. With added tokens it is the
      base's, a plus sign and one of theirs, see `base_fingerprint`.
    added: tokens with the last ids, in their order, each of which is found before anything else.
  """

  vocab_size: int
  fingerprint: str
  added: tuple[str, ...]

  def encode(self, text: str) -> list[int]:
    """Ids of a text, which never spells a special id of the model."""

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids in [0, vocab_size)."""


def base_fingerprint(fingerprint: str) -> str:
  """Of the tokenizer without its added tokens."""
  return fingerprint.partition("+")[0]


def extended_fingerprint(base: str, added: Sequence[str]) -> str:
  """Of a tokenizer of the fingerprint `base` with added tokens."""
  return f"{base}+{hashlib.sha256(json.dumps(added).encode()).hexdigest()}" if added else base


class SentencePieceTokenizer:
  """Text to ids in [0, vocab_size) and back; no beginning, end or padding ids among them.

  Characters it was not trained on are spelt in bytes, so any text can be encoded.

  Attributes:
    vocab_size: number of ids.
    fingerprint: sha256 of the model file, see TextTokenizer.
    added: tokens added behind those of the model file.
    model: the model file, with the added tokens as its last pieces.
  """

  def __init__(self, model: bytes, added: Sequence[str] = ()):
    """UserError for an added token that the model has already."""
    self.added = tuple(added)
    self.fingerprint: str = extended_fingerprint(hashlib.sha256(model).hexdigest(), self.added)
    self.model = _with_pieces(model, self.added) if added else model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
    self.vocab_size: int = self._processor.get_piece_size()

  @classmethod
  def load(
      cls, path: str | os.PathLike[str], added: Sequence[str] = ()
  ) -> "SentencePieceTokenizer":
    """Loads a model file; UserError when it is missing or is no SentencePiece model."""
    try:
      return cls(pathlib.Path(path).read_bytes(), added)
    except OSError as error:
      raise UserError(
          f"{path} cannot be read; name the --output of train_text_tokenizer."
      ) from error
    except RuntimeError as error:
      raise UserError(f"{path} is not a SentencePiece model; train or name another one.") from error

  def encode(self, text: str) -> list[int]:
    """Ids of the normalised text."""
    return self._processor.encode(normalise(text))

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids in [0, vocab_size); bytes that are no UTF-8 become U+FFFD."""
    return self._processor.decode([int(i) for i in ids])


def _with_pieces(model: bytes, added: Sequence[str]) -> bytes:
  """The model with user-defined pieces at its end, which SentencePiece takes out of a text first.

  Of those that fit it takes the longest. The ids before them stay as they are.
  """
  proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
  proto.ParseFromString(model)
  pieces = [token.replace(" ", _SPACE_MARK) for token in added]
  known = {piece.piece for piece in proto.pieces}
  if there := [token for token, piece in zip(added, pieces, strict=True) if piece in known]:
    raise UserError(f"{there[0]!r} is a token of the text tokenizer already; leave it out.")
  for piece in pieces:
    proto.pieces.add(piece=piece, type=proto.SentencePiece.USER_DEFINED)
  return proto.SerializeToString()


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    output: str | os.PathLike[str],
    at_most: bool = False,
) -> SentencePieceTokenizer:
  """Trains on `texts`, writes the model file `output` and returns the tokenizer.

  Byte-pair merges (Sennrich et al. 2016) with byte fallback; the same texts give the same file.
  With `at_most`, texts that cannot fill `vocab_size` get as many ids as they can. Raises UserError
  for a `vocab_size` that the texts cannot fill otherwise, or that does not hold the 256 bytes and
  every character.
  """
  sentences = [normalise(text) for text in texts]
  if not any(sentences):
    raise UserError("There is no text to train the text tokenizer on; give studies with reports.")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentence_length=_MAX_TEXT_BYTES,
        num_threads=1,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
  except (RuntimeError, ValueError) as error:
    room = _TOO_MANY.search(str(error))
    if at_most and room is not None:
      return train_sentencepiece(sentences, int(room[1]), output)
    raise UserError(_training_failure(str(error), vocab_size)) from error
  output = pathlib.Path(output)
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, model.getvalue())
  except OSError as error:
    raise UserError(f"{output} cannot be written ({error}); give another --output.") from error
  return SentencePieceTokenizer(model.getvalue())


def _training_failure(message: str, vocab_size: int) -> str:
  if found := _TOO_MANY.search(message):
    return f"vocab_size={vocab_size} is more than these texts can fill; use at most {found[1]}."
  if found := re.search(r"required_chars\D*\d+ vs (\d+)", message):
    return f"vocab_size={vocab_size} does not hold every character; use at least {found[1]}."
  return f"SentencePiece cannot be trained with vocab_size={vocab_size}: {message.splitlines()[0]}"
