"""R2Gen's annotation form of IU X-ray and MIMIC-CXR: {split: [{id, report, image_path: [..]}]}.

Form: Chen et al. 2020 (R2Gen, arXiv 2010.16056), its released annotation.json files.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import UserError


def studies(annotation: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """The studies of an annotation file, in its own splits.

  Image paths are relative to the file's folder or to `images` in it, where R2Gen keeps them; they
  must lie in `image_root`. The patient is `subject_id` where a row has one (MIMIC-CXR), else the id
  up to its first underscore. The first image counts as frontal; of the others the form tells no
  view. The report stands as the findings, without a row's `impression` where it has one apart.
  Labels are a row's `labels` (NIH ChestX-ray14 names) where it has them.

  Raises UserError for a file that is not of this form.
  """
  splits = files.read_json(annotation)
  if not isinstance(splits, dict) or not all(isinstance(rows, list) for rows in splits.values()):
    raise UserError(f"{annotation} must be of the form {{split: [rows]}}; give R2Gen's annotation.")
  for split in splits:
    if split not in source.SPLITS:
      known = ", ".join(source.SPLITS)
      raise UserError(f"{annotation} has a split {split!r}; rename it to one of {known}.")
  parse = functools.partial(_parse, annotation.parent, image_root)
  description = {"source": "r2gen", "annotation_sha256": files.file_sha256(annotation)}
  return source.gather(
      description, source.parse_rows(_rows(annotation, splits), parse), merge=False
  )


def _rows(annotation: pathlib.Path, splits: dict[str, list[Any]]) -> Iterator[tuple[str, Any]]:
  for split in source.SPLITS:
    for number, row in enumerate(splits.get(split, [])):
      yield f"{annotation} {split}[{number}]", (split, row)


def _parse(folder: pathlib.Path, image_root: pathlib.Path, where: str, item: Any) -> source.Row:
  split, row = item
  row = row if isinstance(row, dict) else {}
  study_id: Any
  report: Any
  paths: Any
  study_id, report, paths, names = (row.get(k) for k in ("id", "report", "image_path", "labels"))
  for key, fits in (
      ("id", isinstance(study_id, str | int)),
      ("report", isinstance(report, str)),
      ("image_path", isinstance(paths, list) and paths and all(isinstance(p, str) for p in paths)),
      ("labels", names is None or isinstance(names, list)),
  ):
    if not fits:
      raise source.BadRow(f"no usable {key}", f"{where} has no usable {key!r}; mend that row.")
  try:
    labels = None if names is None else labels_lib.from_nih14(names)
  except UserError as error:
    raise source.BadRow("label", f"{where}: {error}") from error
  views = ["frontal", *["unknown"] * (len(paths) - 1)]
  return source.Row(
      study_id=str(study_id),
      patient_id=str(row.get("subject_id", str(study_id).split("_")[0])),
      split=split,
      where=where,
      pictures=tuple(
          source.picture_file(view, _path(folder, image_root, path, where))
          for view, path in zip(views, paths, strict=True)
      ),
      report=source.given_sections(findings=report),
      labels=labels,
  )


def _path(folder: pathlib.Path, image_root: pathlib.Path, path: str, where: str) -> pathlib.Path:
  for start in (folder, folder / "images"):
    found = files.inside(image_root, str((start / path).absolute()), where)
    if found.is_file():
      return found
  raise source.BadRow("missing image", f"{where}: an image of it is not on disk; fetch the file.")
