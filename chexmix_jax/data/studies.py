"""Study records: pictures at the model's size, report, labels; one record a study."""

import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from chexmix_jax.data import records
from chexmix_jax.labels import CHEXPERT_14, describe_labels

KIND = "studies"

FEATURES = {
    "study_id": tfds.features.Text(),
    "patient_id": tfds.features.Text(),
    # PNG bytes, grey, frontal views first; a feature of images could not be skipped when read.
    "pictures": tfds.features.Sequence(tfds.features.Text()),
    "views": tfds.features.Tensor(shape=(None,), dtype=np.int8),
    "report": tfds.features.Text(),
    "prior": tfds.features.Text(),
    "indication": tfds.features.Text(),
    "findings": tfds.features.Text(),
    "impression": tfds.features.Text(),
    "question": tfds.features.Text(),
    "answer": tfds.features.Text(),
    "language": tfds.features.Text(),
    "labels": tfds.features.Tensor(shape=(len(CHEXPERT_14),), dtype=np.int8),
}

INDEXED = ("pictures", "report", "prior", "question")
"""Of these the index has the length, of every record."""


@dataclasses.dataclass(frozen=True)
class StudyTable:
  """Studies of one split in memory, in the order they were written.

  Attributes:
    study_ids: N strings.
    patient_ids: N strings.
    images: uint8 (N, H, W), the first picture of each.
    reports: N strings.
    labels: int8 (N, 14), see chexmix_jax.labels.
  """

  study_ids: list[str]
  patient_ids: list[str]
  images: np.ndarray
  reports: list[str]
  labels: np.ndarray


def read_card(studies_dir: pathlib.Path) -> dict[str, Any]:
  """The card of a folder of studies: kind, request, size, account, splits, files."""
  return records.read_card(studies_dir, KIND)


def open_studies(
    studies_dir: pathlib.Path, split: str, need: Sequence[str] = ()
) -> records.RecordSource:
  """Random access to the records of a split, of those that have all of `need`, some of INDEXED."""
  index = records.read_index(studies_dir, KIND, split)
  return records.RecordSource(studies_dir, KIND, split, records.which_have(index, need))


def first_picture(record: records.Record) -> np.ndarray:
  """uint8 (H, W): the first picture of a record, a frontal one where there is any."""
  return decode_picture(record["pictures"][0])


def decode_picture(png: bytes) -> np.ndarray:
  """uint8 (H, W) of one of a record's `pictures`."""
  return np.asarray(Image.open(io.BytesIO(png)))


def text_of(record: records.Record, name: str) -> str:
  """The text `name`, one of documents.TEXT_PARTS, of a record; "" where it has none."""
  return describe_labels(record["labels"]) if name == "labels" else record[name]


def load_studies(
    studies_dir: pathlib.Path, split: str, need: Sequence[str] = ("pictures", "report")
) -> StudyTable:
  """The studies of a split that have what is needed, pictures at least, in memory."""
  rows = list(open_studies(studies_dir, split, need))
  return StudyTable(
      study_ids=[row["study_id"] for row in rows],
      patient_ids=[row["patient_id"] for row in rows],
      images=np.stack([first_picture(row) for row in rows]),
      reports=[row["report"] for row in rows],
      labels=np.stack([row["labels"] for row in rows]),
  )
