"""Token records: every study as image codes and report text ids, and the card that binds them."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from chexmix_jax.data import images, records, studies
from chexmix_jax.errors import UserError
from chexmix_jax.labels import CHEXPERT_14
from chexmix_jax.progress import progress
from chexmix_jax.tokenizers.text import TextTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary

_KIND = "tokens"
_IMAGES_AT_A_TIME = 256


class ImageTokenizer(Protocol):
  """What tokenising needs of an image tokenizer."""

  grid: tuple[int, int]
  num_codes: int

  @property
  def fingerprint(self) -> str:
    """Hex."""

  def encode(self, pixels: np.ndarray) -> np.ndarray:
    """int32 (N, h, w) codes of float32 (N, H, W, C) pixels in [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """One split in memory, in the order of the studies.

  Attributes:
    study_ids: N strings.
    patient_ids: N strings.
    codes: int32 (N, h*w) in raster order, in [0, num_codes).
    texts: N arrays of int32 text ids.
    labels: int8 (N, 14), see chexmix_jax.labels.
  """

  study_ids: list[str]
  patient_ids: list[str]
  codes: np.ndarray
  texts: list[np.ndarray]
  labels: np.ndarray


def tokenize_studies(
    studies_dir: pathlib.Path,
    image_tokenizer: ImageTokenizer,
    text_tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    output: pathlib.Path,
) -> dict[str, Any]:
  """Writes the token records of all splits of `studies_dir` to `output`; returns their card.

  Does nothing when `output` holds the same tokens already. Raises UserError for tokenizers that do
  not fit the vocabulary and for an `output` that holds something else.
  """
  _check_sizes(image_tokenizer, text_tokenizer, vocabulary)
  facts = {
      "vocabulary": vocabulary.to_dict(),
      "image_tokenizer": image_tokenizer.fingerprint,
      "text_tokenizer": text_tokenizer.fingerprint,
      "grid": list(image_tokenizer.grid),
  }
  studies_card = studies.read_card(studies_dir)
  request = {"studies": studies_card["request"], **facts}
  card = records.finished(output, _KIND, request)
  if card is not None:
    return card
  with progress(total=sum(studies_card["splits"].values()), desc="tokenize", unit="study") as bar:

    def tokens(split: str) -> Iterator[records.Record]:
      source = studies.open_studies(studies_dir, split)
      for start in range(0, len(source), _IMAGES_AT_A_TIME):
        rows = [source[i] for i in range(start, min(start + _IMAGES_AT_A_TIME, len(source)))]
        pixels = np.stack([studies.decode_image(row["image"]) for row in rows])
        codes = image_tokenizer.encode(images.to_float(pixels)[..., None])
        for row, code in zip(rows, codes, strict=True):
          yield {
              "study_id": row["study_id"],
              "patient_id": row["patient_id"],
              "codes": np.asarray(code, np.int32).reshape(-1),
              "text": np.asarray(text_tokenizer.encode(row["report"]), np.int32),
              "labels": row["labels"],
          }
        bar.update(len(rows))

    height, width = image_tokenizer.grid
    return records.write_records(
        output, _KIND, request, _features(height * width),
        {split: tokens(split) for split in studies_card["splits"]}, facts,
    )  # fmt: skip


def read_card(tokens_dir: pathlib.Path) -> dict[str, Any]:
  """The card: vocabulary, image_tokenizer and text_tokenizer fingerprints, grid, splits."""
  return records.read_card(tokens_dir, _KIND)


def check_card(
    tokens_dir: pathlib.Path,
    vocabulary: Vocabulary | None = None,
    image_tokenizer: str | None = None,
    text_tokenizer: str | None = None,
) -> dict[str, Any]:
  """The card of `tokens_dir`, after comparing it with what is given (fingerprints as strings).

  Raises UserError that names what the tokens were made with another one of.
  """
  card = read_card(tokens_dir)
  wanted = {
      "vocabulary": vocabulary and vocabulary.to_dict(),
      "image_tokenizer": image_tokenizer,
      "text_tokenizer": text_tokenizer,
  }
  for key, value in wanted.items():
    if value is not None and value != card[key]:
      raise UserError(
          f"{tokens_dir} was made with another {key.replace('_', ' ')}; run tokenize again with the"
          " one given."
      )
  return card


def open_tokens(tokens_dir: pathlib.Path, split: str) -> records.RecordSource:
  """Random access to study_id, patient_id, codes (h*w,), text (m,) and labels (14,) of a split."""
  return records.RecordSource(tokens_dir, _KIND, split)


def load_tokens(tokens_dir: pathlib.Path, split: str) -> TokenTable:
  """A whole split in memory."""
  rows = list(open_tokens(tokens_dir, split))
  return TokenTable(
      study_ids=[row["study_id"] for row in rows],
      patient_ids=[row["patient_id"] for row in rows],
      codes=np.stack([row["codes"] for row in rows]),
      texts=[row["text"] for row in rows],
      labels=np.stack([row["labels"] for row in rows]),
  )


def _check_sizes(
    image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
  for what, size, room in (
      ("image tokenizer", image_tokenizer.num_codes, vocabulary.num_codes),
      ("text tokenizer", text_tokenizer.vocab_size, vocabulary.num_text),
  ):
    if size != room:
      raise UserError(
          f"The {what} has {size} ids where the vocabulary has {room}; use the vocabulary made for"
          " it."
      )


def _features(num_codes: int) -> dict[str, Any]:
  return {
      "study_id": tfds.features.Text(),
      "patient_id": tfds.features.Text(),
      "codes": tfds.features.Tensor(shape=(num_codes,), dtype=np.int32),
      "text": tfds.features.Tensor(shape=(None,), dtype=np.int32),
      "labels": tfds.features.Tensor(shape=(len(CHEXPERT_14),), dtype=np.int8),
  }
