"""R2Gen's annotation form of IU X-ray and MIMIC-CXR: {split: [{id, report, image_path: [..]}]}.

Form: Chen et al. 2020 (R2Gen, arXiv 2010.16056), its released annotation.json files.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import images
from chexmix_jax.data.sources import source
from chexmix_jax.errors import UserError

LabelFn = Callable[[str], np.ndarray]


def studies(annotation: pathlib.Path, label_fn: LabelFn) -> source.Source:
  """The studies of an annotation file, in its own splits; the first image of each is used.

  Image paths are relative to the file's folder or to `images` in it, where R2Gen keeps them. The
  patient is `subject_id` where a row has one (MIMIC-CXR), else the id up to its first underscore.
  Labels come from a row's `labels` (NIH ChestX-ray14 names) where it has them, else from
  `label_fn` on the report.

  Raises UserError for a file that is not of this form.
  """
  splits = _load(annotation)
  found = []
  for split in source.SPLITS:
    for number, row in enumerate(splits.get(split, [])):
      where = f"{annotation} {split}[{number}]"
      study_id, report, image_path, names = _fields(row, where)
      content = functools.partial(
          _content, annotation.parent, image_path, report, names, where, label_fn
      )
      patient_id = str(row.get("subject_id", study_id.split("_")[0]))
      found.append(source.Study(study_id, patient_id, split, where, content))
  if not found:
    raise UserError(f"{annotation} lists no study; give a file with rows under 'train'.")
  description = {"source": "r2gen", "annotation_sha256": source.file_sha256(annotation)}
  return source.Source(description, tuple(found))


def _load(annotation: pathlib.Path) -> dict[str, list[Any]]:
  try:
    splits = json.loads(source.read_text(annotation))
  except json.JSONDecodeError as error:
    raise UserError(
        f"{annotation} is not JSON (line {error.lineno}: {error.msg}); mend or replace the file."
    ) from error
  if not isinstance(splits, dict) or not all(isinstance(rows, list) for rows in splits.values()):
    raise UserError(f"{annotation} must be of the form {{split: [rows]}}; give R2Gen's annotation.")
  for split in splits:
    if split not in source.SPLITS:
      known = ", ".join(source.SPLITS)
      raise UserError(f"{annotation} has a split {split!r}; rename it to one of {known}.")
  return splits


def _fields(row: Any, where: str) -> tuple[str, str, str, list[str] | None]:
  row = row if isinstance(row, dict) else {}
  study_id, report, paths, names = (row.get(k) for k in ("id", "report", "image_path", "labels"))
  for key, fits in (
      ("id", isinstance(study_id, str | int)),
      ("report", isinstance(report, str)),
      ("image_path", isinstance(paths, list) and paths and isinstance(paths[0], str)),
      ("labels", names is None or isinstance(names, list)),
  ):
    if not fits:
      raise UserError(f"{where} has no usable {key!r}; mend that row.")
  return str(study_id), source.clean_report(report), paths[0], names


def _content(
    folder: pathlib.Path,
    image_path: str,
    report: str,
    names: list[str] | None,
    where: str,
    label_fn: LabelFn,
    size: int,
) -> source.StudyContent:
  path = folder / image_path
  if not path.is_file() and (folder / "images" / image_path).is_file():
    path = folder / "images" / image_path
  image = images.grey(images.read_image(path, size))
  try:
    labels = label_fn(report) if names is None else labels_lib.from_nih14(names)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
  return source.StudyContent(image, report, labels)
