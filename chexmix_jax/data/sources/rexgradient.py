"""ReXGradient-160K (Zhang et al. 2025, arXiv 2505.00228): 16-bit PNG with English reports."""

import functools
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import BadRow, UserError

_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_SECTIONS = ("Indication", "Findings", "Impression")


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """The studies of `metadata/{train,valid,test}_metadata_view_position.json`, in these splits.

  Paths of images begin with `../` where they are meant from the metadata's folder; what follows
  lies in `image_root`. The patient is `PatientID` where a study has it, else the id up to its first
  underscore (all of it where it has none). Views that are not given are unknown. `StudyDate` orders
  a patient's studies.

  Raises UserError for a missing file and for one that is not of this form.
  """
  tables = {
      split: files.find_file(
          data_dir / "metadata", f"{name}_metadata_view_position.json", "ReXGradient-160K"
      )
      for name, split in _SPLITS.items()
  }
  rows = itertools.chain.from_iterable(
      source.parse_rows(_rows(table), functools.partial(_parse, image_root, split))
      for split, table in tables.items()
  )
  sums = {f"{split}_sha256": files.file_sha256(table) for split, table in tables.items()}
  return source.gather({"source": "rexgradient"} | sums, rows, merge=False)


class _Pairs(list):
  """A JSON object as pairs: as a dict it would hide an id that stands twice."""


def _rows(table: pathlib.Path) -> Iterator[tuple[str, Any]]:
  try:
    # NaN, which pandas writes for an empty cell, is nothing.
    content = json.loads(
        files.read_text(table), object_pairs_hook=_Pairs, parse_constant=lambda _: None
    )
  except (ValueError, RecursionError):
    raise UserError(f"{table} is not JSON; mend or replace the file.") from None
  if not isinstance(content, _Pairs):
    raise UserError(f"{table} must be an object of studies by id; give the set's own file.")
  for number, item in enumerate(content, start=1):
    yield f"{table} entry {number}", item


def _parse(image_root: pathlib.Path, split: str, where: str, item: Any) -> source.Row:
  study_id, row = item
  row = dict(row) if isinstance(row, _Pairs) else {}
  if not study_id.strip():
    raise BadRow("no id", f"{where} has no id; mend or remove that entry.")
  paths: Any = row.get("ImagePath")
  views: Any = row.get("ImageViewPosition") or []
  for key, value in (("ImagePath", paths or None), ("ImageViewPosition", views)):
    if not isinstance(value, list) or not all(isinstance(v, str | None) for v in value):
      raise BadRow(f"no usable {key}", f"{where} has no usable {key!r}; mend that entry.")
  sections = {name.lower(): row.get(name) or "" for name in _SECTIONS}
  if not all(isinstance(text, str) for text in sections.values()):
    raise BadRow("no usable report", f"{where} has a section that is no text; mend that entry.")
  try:
    "".join([study_id, str(row.get("PatientID")), *map(str, paths), *sections.values()]).encode()
  except UnicodeEncodeError:
    # A \ud800 by itself, which JSON can hold.
    raise BadRow("encoding", f"{where} is not UTF-8 text; mend that entry.") from None
  pictures = tuple(
      source.picture_file(
          # The set has POSTERO_ANTERIOR beside PA.
          source.view_of((view or "").replace("_", "")),
          files.inside(image_root, (path or "").removeprefix("../"), where),
      )
      for path, view in itertools.zip_longest(paths, views[: len(paths)])
  )
  return source.Row(
      study_id=study_id,
      patient_id=str(row.get("PatientID") or study_id.split("_")[0] or study_id),
      split=split,
      where=where,
      pictures=pictures,
      report=source.given_sections(**sections) if "".join(sections.values()).strip() else None,
      order=str(row["StudyDate"]) if row.get("StudyDate") else None,
  )
