"""What every source gives: studies known by id and split, whose content is read on demand.

A reader turns the rows of its tables into `Row`s; a row that cannot be used becomes a `Refusal`,
and the rest goes on. `gather` makes studies of them. Worker processes import this module and the
readers beside it, so they import neither jax nor TFDS.
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from chexmix_jax.data import images
from chexmix_jax.data.reports import Sections
from chexmix_jax.errors import BadRow, UserError

T = TypeVar("T")

SPLITS = ("train", "val", "test")
VIEWS = ("frontal", "lateral", "unknown")

_FRONTAL = {"PA", "AP", "FRONTAL", "POSTEROANTERIOR", "ANTEROPOSTERIOR", "POSTERO", "ANTERO"}
_LATERAL = {"LATERAL", "LL", "L", "RL", "LLD", "RLD", "LAT", "XTABLE"}


@dataclasses.dataclass(frozen=True)
class Refusal:
  """Something that was left out.

  Attributes:
    level: `row`, `study` or `picture`.
    where: the file and row it stands in.
    kind: as of BadRow.
    reason: one sentence; never a word of a report.
    file: the picture's file, or "".
  """

  level: str
  where: str
  kind: str
  reason: str
  file: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture before it is read.

  Attributes:
    view: one of VIEWS.
    file: its path, or what it is generated from.
    read: gives uint8 (size, size), grey; can be pickled.
  """

  view: str
  file: str
  read: Callable[[int], np.ndarray]


ReadSections = Callable[[], Sections]
"""Reads a report; can be pickled. Raises BadRow where it cannot be read."""


@dataclasses.dataclass(frozen=True)
class Row:
  """What one row of a table says of a study; rows with one `study_id` can be merged.

  Attributes:
    labels: int8 (14,), see chexmix_jax.labels, or None: they come from the report, by rules.
    order: sorts the studies of a patient by time, or None where that is not known.
    question: on the pictures, or "". A row with one is a study of its own, and its pictures may
      stand in other rows too.
    answer: to the question.
  """

  study_id: str
  patient_id: str
  split: str
  where: str
  pictures: tuple[Picture, ...] = ()
  report: ReadSections | None = None
  labels: np.ndarray | None = None
  order: Any = None
  question: str = ""
  answer: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
  """A study before its content is read.

  Attributes:
    study_id: unique in the source.
    patient_id: all studies of a patient should be in the same split.
    split: one of SPLITS.
    where: the file and row it stands in, for messages; never an id or a word of the report.
    pictures: frontal ones first.
    report: reads its sections; None where the set has no report of it.
    prior: reads those of the patient's study before; None where there is none.
    labels: int8 (14,), or None: from the report, by rules.
    question: on the pictures, or "".
    answer: to the question.
  """

  study_id: str
  patient_id: str
  split: str
  where: str
  pictures: tuple[Picture, ...]
  report: ReadSections | None
  prior: ReadSections | None
  labels: np.ndarray | None
  question: str = ""
  answer: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
  """A set of studies.

  Attributes:
    description: JSON-ready facts which say that it is the same set.
    studies: in the order of the table.
    refused: rows that gave no study.
    num_rows: rows read, those refused included.
  """

  description: dict[str, Any]
  studies: tuple[Study, ...]
  refused: tuple[Refusal, ...] = ()
  num_rows: int = 0


def parse_rows(
    rows: Iterable[tuple[str, T | Refusal]], parse: Callable[[str, T], Row | None]
) -> Iterator[Row | Refusal]:
  """`parse(where, row)` of every (where, row); None is skipped, BadRow becomes a Refusal."""
  for where, row in rows:
    if isinstance(row, Refusal):
      yield row
      continue
    try:
      parsed = parse(where, row)
    except BadRow as error:
      yield Refusal("row", where, error.kind, str(error))
      continue
    if parsed is not None:
      yield parsed


def gather(description: dict[str, Any], rows: Iterable[Row | Refusal], merge: bool) -> Source:
  """The source of these rows.

  With `merge`, rows with one study id make one study (tables with a row a picture); else a study id
  that stands twice is refused, as a picture that stands twice is but in rows with questions, which
  are never merged. Raises UserError where no row can be used.
  """
  groups: dict[str, list[Row]] = {}
  refused: list[Refusal] = []
  files: set[str] = set()
  number = 0
  for row in rows:
    number += 1
    if isinstance(row, Refusal):
      refused.append(row)
      continue
    known = groups.get(row.study_id, [])
    if problem := _conflict(known, row, files, merge):
      refused.append(Refusal("row", row.where, *problem))
      continue
    if not row.question:
      files.update(picture.file for picture in row.pictures)
    groups.setdefault(row.study_id, []).append(row)
  studies = [_study(rows) for rows in groups.values()]
  if not studies:
    reason = f" (the first of {len(refused)} refused: {refused[0].reason})" if refused else ""
    raise UserError(
        f"{description['source']} has no row that can be used{reason}; give the set's own table."
    )
  priors = _priors(groups)
  studies = [dataclasses.replace(s, prior=priors.get(s.study_id)) for s in studies]
  return Source(description, tuple(studies), tuple(refused), number)


def _conflict(
    known: list[Row], row: Row, files: set[str], merge: bool
) -> tuple[str, str] | None:
  """What keeps a row from joining the rows known of its study: a kind and a sentence."""
  if known and (not merge or row.question or known[0].question):
    first = known[0].where
    return "duplicate id", f"{row.where} has the study id of {first}; rename or remove one."
  if known and (known[0].patient_id, known[0].split) != (row.patient_id, row.split):
    return (
        "study of two patients or splits",
        f"{row.where} gives its study another patient or split than {known[0].where}; mend one.",
    )
  try:
    f"{row.study_id}{row.patient_id}".encode()
  except UnicodeEncodeError:  # JSON can spell half of a character.
    return "encoding", f"{row.where} has an id that is no text; mend the row."
  names = [picture.file for picture in row.pictures]
  stands_before = not row.question and any(name in files for name in names)
  if len(set(names)) < len(names) or stands_before:
    return "duplicate picture", f"{row.where} names a picture that stands before; remove one."
  return None


def _study(rows: list[Row]) -> Study:
  pictures = [picture for row in rows for picture in row.pictures]
  return Study(
      study_id=rows[0].study_id,
      patient_id=rows[0].patient_id,
      split=rows[0].split,
      where=rows[0].where,
      # A stable sort: of each view the table's order stays.
      pictures=tuple(sorted(pictures, key=lambda picture: VIEWS.index(picture.view))),
      report=next((row.report for row in rows if row.report), None),
      prior=None,
      labels=next((row.labels for row in rows if row.labels is not None), None),
      question=rows[0].question,
      answer=rows[0].answer,
  )


def _priors(groups: dict[str, list[Row]]) -> dict[str, ReadSections | None]:
  """The report of the patient's study before, by study id; within one split.

  Rows with a question have none: those of one study would be each other's.
  """
  by_patient: dict[tuple[str, str], list[tuple[Any, str, ReadSections | None]]] = {}
  for study_id, rows in groups.items():
    if rows[0].order is not None and not rows[0].question:
      report = next((row.report for row in rows if row.report), None)
      key = (rows[0].patient_id, rows[0].split)
      by_patient.setdefault(key, []).append((rows[0].order, study_id, report))
  priors: dict[str, ReadSections | None] = {}
  for of_patient in by_patient.values():
    of_patient.sort(key=lambda item: item[:2])
    for before, after in itertools.pairwise(of_patient):
      priors[after[1]] = before[2]
  return priors


def picture_file(view: str, path: pathlib.Path) -> Picture:
  """The picture in a PNG, JPEG or DICOM file."""
  return Picture(view, str(path), functools.partial(_read_grey, path))


def _read_grey(path: pathlib.Path, size: int) -> np.ndarray:
  return images.read_grey(path, size)


def given_sections(**sections: str) -> ReadSections:
  """Sections that are known already, as keywords of Sections."""
  return functools.partial(Sections, **sections)


def view_of(text: str) -> str:
  """One of VIEWS from a set's own word: PA, AP, AP AXIAL, Frontal, LATERAL, LL …"""
  words = text.upper().replace("_", " ").replace("-", " ").split()
  if _FRONTAL & set(words[:1]):
    return "frontal"
  # LEFT LATERAL has its view last.
  return "lateral" if _LATERAL & {*words[:1], *words[-1:]} else "unknown"


def hash_split(name: str, patient_id: str, val: float, test: float = 0.0) -> str:
  """A split by a hash of the patient, for sets that have none; `name` is the set's."""
  fraction = hash_fraction(f"{name}:{patient_id}")
  if fraction < val:
    return "val"
  return "test" if fraction < val + test else "train"


def hash_fraction(text: str) -> float:
  """A number in [0, 1) fixed by the text, the same on every machine."""
  return stable_seed(text) / 2**64


def stable_seed(text: str) -> int:
  """A 64-bit seed fixed by the text, the same on every machine."""
  return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big")
