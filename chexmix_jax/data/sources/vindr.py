"""VinDr-CXR (Nguyen et al. 2022, arXiv 2012.15029): DICOM, labelled by radiologists, no reports."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import BadRow, UserError

_VAL_FRACTION = 0.1
# Names of the set that have a CheXpert counterpart.
_COUNTERPARTS = {
    "no finding": "No Finding", "cardiomegaly": "Cardiomegaly", "lung opacity": "Lung Opacity",
    "infiltration": "Lung Opacity", "ild": "Lung Opacity", "nodule/mass": "Lung Lesion",
    "lung tumor": "Lung Lesion", "edema": "Edema", "consolidation": "Consolidation",
    "pneumonia": "Pneumonia", "atelectasis": "Atelectasis", "pneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion", "pleural thickening": "Pleural Other",
    "clavicle fracture": "Fracture", "rib fracture": "Fracture",
}  # fmt: skip


def _key(name: str) -> str:
  """The same for "Other diseases", as train has it, and "Other disease", as test does."""
  return name.strip().lower().removesuffix("s")


_FINDINGS = {_key(name): finding for name, finding in _COUNTERPARTS.items()}


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """Every image of `annotations/image_labels_{train,test}.csv`, one study each.

  A training image has the findings that most of its readers saw (2 of 3). The test split is the
  set's; a tenth of the training images, picked by a hash of the id, is the validation split. The
  set names no patients, so an image is one. All views are frontal. A finding without a column is
  unknown.

  Raises UserError for a missing table or column; a reader's row with a cell other than 0 or 1 is
  refused, and the image goes by the others.
  """
  rows, sums = [], {}
  number = itertools.count()
  for name in ("train", "test"):
    table = files.find_file(data_dir / "annotations", f"image_labels_{name}.csv", "VinDr-CXR")
    sums[f"{name}_sha256"] = files.file_sha256(table)
    rows.append(_images(table, image_root, name, number))
  found = source.gather(
      {"source": "vindr"} | sums, itertools.chain.from_iterable(rows), merge=False
  )
  # Rows of the tables, and not the images that they are gathered to.
  return dataclasses.replace(found, num_rows=next(number))


def _images(
    table: pathlib.Path, image_root: pathlib.Path, name: str, number: Iterator[int]
) -> Iterator[source.Row | source.Refusal]:
  """A row for each image, and the refusals; takes one of `number` for each row it reads."""
  columns = ("image_id", "rad_id") if name == "train" else ("image_id",)
  votes: dict[str, list[dict[str, int]]] = {}
  readers: set[tuple[str, str]] = set()
  first: dict[str, str] = {}
  for where, row in files.read_table(table, columns):
    next(number)
    if isinstance(row, source.Refusal):
      yield row
      continue
    try:
      image = files.required(row, "image_id", where)
      reader = image, files.required(row, "rad_id", where) if name == "train" else ""
      if reader in readers:
        raise BadRow("duplicate id", f"{where} repeats an image and its reader; remove one.")
      vote = _vote(row, where)
      if not _FINDINGS.keys() & vote.keys():
        raise UserError(f"{table} has no column of a finding; give the set's own table.")
    except BadRow as error:
      yield source.Refusal("row", where, error.kind, str(error))
      continue
    readers.add(reader)
    votes.setdefault(image, []).append(vote)
    first.setdefault(image, where)
  parse = functools.partial(_parse, image_root, name, votes)
  yield from source.parse_rows(((first[image], image) for image in votes), parse)


def _vote(row: dict[str, str], where: str) -> dict[str, int]:
  """0 or 1 by the finding's key."""
  cells = {key: cell for key, cell in row.items() if key not in ("image_id", "rad_id", "")}
  if not set(cells.values()) <= {"0", "1", "0.0", "1.0"}:
    raise BadRow("label", f"{where} has a cell other than 0 and 1; mend the row.")
  return {_key(name): int(float(cell)) for name, cell in cells.items()}


def _parse(
    image_root: pathlib.Path,
    name: str,
    votes: dict[str, list[dict[str, int]]],
    where: str,
    image: str,
) -> source.Row:
  labels = np.full(len(labels_lib.CHEXPERT_14), labels_lib.UNKNOWN, np.int8)
  for key, finding in _FINDINGS.items():
    if key in votes[image][0]:
      is_seen = 2 * sum(vote[key] for vote in votes[image]) > len(votes[image])
      index = labels_lib.INDEX[finding]
      # Of several columns of one finding any counts.
      labels[index] = max(labels[index], int(is_seen))
  labels_lib.mark_opacity(labels)
  path = files.inside(image_root, f"{name}/{image}.dicom", where)
  return source.Row(
      study_id=image,
      patient_id=image,
      split="test" if name == "test" else source.hash_split("vindr", image, _VAL_FRACTION),
      where=where,
      pictures=(source.picture_file("frontal", path),),
      labels=labels,
  )
