"""What every source gives: studies known by id and split, whose content is read on demand.

Worker processes import this module and the readers beside it, so they import neither jax nor TFDS.
"""

import csv
import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from chexmix_jax.errors import UserError

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class StudyContent:
  """The content of one study.

  Attributes:
    image: uint8 (size, size), grey.
    report: free text, not empty.
    labels: int8 (14,), see chexmix_jax.labels.
  """

  image: np.ndarray
  report: str
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Study:
  """A study before its content is read.

  Attributes:
    study_id: unique in the source.
    patient_id: all studies of a patient are in the same split.
    split: one of SPLITS.
    where: the file and row it stands in, for messages; never an id or a word of the report.
    load: reads or renders the content at a size in pixels; can be pickled.
  """

  study_id: str
  patient_id: str
  split: str
  where: str
  load: Callable[[int], StudyContent]


@dataclasses.dataclass(frozen=True)
class Source:
  """A set of studies, and the JSON-ready facts which say that it is the same set."""

  description: dict[str, Any]
  studies: tuple[Study, ...]


def load_record(study: Study, size: int) -> dict[str, Any]:
  """The record of a study, its image as PNG bytes; runs in a worker process.

  Raises UserError for an unreadable image or an empty report.
  """
  content = study.load(size)
  if not content.report:
    raise UserError(f"{study.where} has an empty report; write one or remove the entry.")
  png = io.BytesIO()
  # Level 1 is several times faster than the default for a few per cent more bytes.
  Image.fromarray(content.image).save(png, "png", compress_level=1)
  return {
      "study_id": study.study_id,
      "patient_id": study.patient_id,
      "image": png.getvalue(),
      "report": content.report,
      "labels": np.asarray(content.labels, np.int8),
  }


def clean_report(text: str) -> str:
  """The report with every run of white space as one space."""
  return " ".join(text.split())


def hash_fraction(text: str) -> float:
  """A number in [0, 1) fixed by the text, the same on every machine."""
  return stable_seed(text) / 2**64


def stable_seed(text: str) -> int:
  """A 64-bit seed fixed by the text, the same on every machine."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_text(path: pathlib.Path) -> str:
  """A UTF-8 file's text; UserError when it is missing or of another encoding."""
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
  except OSError as error:
    reason = os.strerror(error.errno or 0)
    raise UserError(f"{path} cannot be read ({reason}); mend the path.") from error


def read_table(path: pathlib.Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
  """The rows of a CSV file that must have `columns`; UserError otherwise."""
  reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
  try:
    rows = list(reader)
  except csv.Error as error:
    raise UserError(f"{path} is not a readable CSV table ({error}); replace the file.") from error
  missing = [name for name in columns if name not in (reader.fieldnames or ())]
  if missing:
    raise UserError(f"{path} has no column {missing[0]!r}; give the set's own table.")
  for number, row in enumerate(rows, start=2):
    if any(row[name] is None for name in columns):
      raise UserError(f"{path} row {number} has too few cells; mend the row or replace the file.")
  return rows


def file_sha256(path: pathlib.Path) -> str:
  """Hex digest of a file's bytes."""
  return hashlib.sha256(path.read_bytes()).hexdigest()
