"""Labels from a table beside the records: another labeler's, or findings that records have not."""

import pathlib
from collections.abc import Sequence

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources import files
from chexmix_jax.errors import UserError

_STUDY = "study_id"
_NIH_IMAGE, _NIH_FINDINGS = "Image Index", "Finding Labels"


def read_label_file(path: pathlib.Path, findings: Sequence[str]) -> dict[str, np.ndarray]:
  """Study id -> int8 (F,): POSITIVE, NEGATIVE, UNCERTAIN or UNKNOWN of each of `findings`.

  `path` is a CSV, perhaps gzipped, with a `study_id` and a column named like each finding (1, 0, -1
  or empty): what `evaluate label` writes of a table with that id, or MIMIC-CXR's tables, whose
  studies are known here by an `s` before the number. Or it is the Data_Entry_2017*.csv of NIH
  ChestX-ray14 (findings of labels.NIH14), whose studies are known by the picture's name.

  Raises UserError that names the file, and the row or the column, for anything else, and where two
  rows of one study differ.
  """
  first = next(files.read_table(path, ()), None)
  if first is None:
    raise UserError(f"{path} has no rows; give a table with a study a row.")
  header = first[1] if isinstance(first[1], dict) else {}
  is_nih = _NIH_FINDINGS in header
  known = labels_lib.NIH14 if is_nih else tuple(header)
  if missing := [name for name in findings if header and name not in known]:
    raise UserError(
        f"{path} has no labels of {missing[0]!r}; ask for other findings, of {', '.join(known)}."
    )
  columns = (_NIH_IMAGE, _NIH_FINDINGS) if is_nih else (_STUDY, *findings)
  parse = _nih_row if is_nih else _row
  found: dict[str, np.ndarray] = {}
  for where, row in files.read_table(path, columns):
    if not isinstance(row, dict):
      raise UserError(row.reason)
    study, labels = parse(where, row, findings)
    if (found.setdefault(study, labels) != labels).any():
      raise UserError(f"{where} has other labels than an earlier row of its study; remove one.")
  return found


def _row(where: str, row: dict[str, str], findings: Sequence[str]) -> tuple[str, np.ndarray]:
  study = files.required(row, _STUDY, where)
  is_mimic = "subject_id" in row and study.isdecimal()
  return f"s{study}" if is_mimic else study, files.label_cells(row, where, findings)


def _nih_row(where: str, row: dict[str, str], findings: Sequence[str]) -> tuple[str, np.ndarray]:
  try:
    named = labels_lib.check_nih14(row[_NIH_FINDINGS].split("|"))
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
  labels = [labels_lib.POSITIVE if name in named else labels_lib.NEGATIVE for name in findings]
  return files.required(row, _NIH_IMAGE, where).rsplit(".", 1)[0], np.array(labels, np.int8)
