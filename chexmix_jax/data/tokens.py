"""Token records: every study as image codes and text ids, and the card that binds them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from chexmix_jax.data import records
from chexmix_jax.data.documents import TEXT_PARTS
from chexmix_jax.errors import UserError
from chexmix_jax.labels import CHEXPERT_14
from chexmix_jax.tokenizers.vocabulary import Vocabulary

KIND = "tokens"

INDEXED = ("pictures", "frontal", "lateral", *TEXT_PARTS)
"""What the index has of every record: how many pictures, of each view, and ids of each text."""

_SAME = ("vocabulary", "image_tokenizer", "text_tokenizer", "grid")


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """Studies of one split in memory, in their order.

  Attributes:
    study_ids: N strings.
    patient_ids: N strings.
    codes: int32 (N, h*w) in raster order, in [0, num_codes), of the first picture of each.
    texts: N arrays of int32 text ids, of the reports.
    labels: int8 (N, 14), see chexmix_jax.labels.
  """

  study_ids: list[str]
  patient_ids: list[str]
  codes: np.ndarray
  texts: list[np.ndarray]
  labels: np.ndarray


def features(num_codes: int) -> dict[str, Any]:
  """Of a record, with `num_codes` codes a picture."""
  ids = tfds.features.Tensor(shape=(None,), dtype=np.int32)
  return {
      "study_id": tfds.features.Text(),
      "patient_id": tfds.features.Text(),
      "codes": tfds.features.Tensor(shape=(None, num_codes), dtype=np.int32),
      "views": tfds.features.Tensor(shape=(None,), dtype=np.int8),
      **{f"{name}_{what}": ids for name in TEXT_PARTS for what in ("ids", "sentences")},
      "labels": tfds.features.Tensor(shape=(len(CHEXPERT_14),), dtype=np.int8),
  }


def read_card(tokens_dir: pathlib.Path) -> dict[str, Any]:
  """The card: vocabulary, image_tokenizer and text_tokenizer fingerprints, grid, splits.

  `image_tokenizer` is that of the codes, equal for all that were adapted from one tokenizer; the
  `request` has that of the tokenizer itself.
  """
  return records.read_card(tokens_dir, KIND)


def read_joint_card(folders: Sequence[pathlib.Path]) -> dict[str, Any]:
  """One card for several folders, which must have been made with the same tokenizers.

  Its `request` is a list of theirs where there are several. Raises UserError that names the folder
  and what it was made with another one of.
  """
  cards = [read_card(folder) for folder in folders]
  for folder, card in zip(folders, cards, strict=True):
    for key in _SAME:
      if card[key] != cards[0][key]:
        raise UserError(
            f"{folder} was made with another {key.replace('_', ' ')} than {folders[0]}; run"
            " tokenize again with the same one."
        )
  requests = [card["request"] for card in cards]
  common = {key: cards[0][key] for key in _SAME}
  return {"kind": KIND, "request": requests[0] if len(requests) == 1 else requests, **common}


def check_card(
    tokens_dir: pathlib.Path,
    vocabulary: Vocabulary | None = None,
    image_tokenizer: str | None = None,
    text_tokenizer: str | None = None,
) -> dict[str, Any]:
  """The card of `tokens_dir`, after comparing it with what is given (fingerprints as strings).

  The image tokenizer is the very one that made them, and not one with the same codes. Raises
  UserError that names what the tokens were made with another one of.
  """
  card = read_card(tokens_dir)
  wanted = {
      "vocabulary": vocabulary and vocabulary.to_dict(),
      "image_tokenizer": image_tokenizer,
      "text_tokenizer": text_tokenizer,
  }
  for key, value in wanted.items():
    made_of = card["request"][key] if key == "image_tokenizer" else card[key]
    if value is not None and value != made_of:
      raise UserError(
          f"{tokens_dir} was made with another {key.replace('_', ' ')}; run tokenize again with the"
          " one given."
      )
  return card


def read_index(tokens_dir: pathlib.Path, split: str) -> dict[str, np.ndarray]:
  """Numbers of every record of a split, int32 (N,) each, by the names of INDEXED."""
  return records.read_index(tokens_dir, KIND, split)


def open_tokens(
    tokens_dir: pathlib.Path,
    split: str,
    need: Sequence[str] = (),
    fields: Sequence[str] | None = None,
) -> records.RecordSource:
  """Random access to the records of a split, of those that have all of `need`, some of INDEXED.

  A record has study_id, patient_id, codes (pictures, h*w), views, labels (14,), and of each of
  documents.TEXT_PARTS NAME_ids and NAME_sentences, the lengths where its sentences end; or of these
  what is named in `fields`, which is faster to read.
  """
  numbers = records.which_have(read_index(tokens_dir, split), need)
  return records.RecordSource(tokens_dir, KIND, split, numbers, fields)


def load_tokens(
    tokens_dir: pathlib.Path, split: str, need: Sequence[str] = ("pictures", "report")
) -> TokenTable:
  """The studies of a split that have what is needed, pictures at least, in memory.

  Raises UserError where there is none.
  """
  rows = list(open_tokens(tokens_dir, split, need))
  if not rows:
    needed = " and ".join(need)
    raise UserError(f"No study of {split} in {tokens_dir} has {needed}; use other data.")
  return TokenTable(
      study_ids=[row["study_id"] for row in rows],
      patient_ids=[row["patient_id"] for row in rows],
      codes=np.stack([row["codes"][0] for row in rows]),
      texts=[row["report_ids"] for row in rows],
      labels=np.stack([row["labels"] for row in rows]),
  )
