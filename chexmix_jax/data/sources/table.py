"""Any set as a table of one's own: CSV or JSON lines, with columns that the user names."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.reports import SECTIONS, parse_sections
from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import BadRow, UserError

KEYS = (
    "image", "report", *SECTIONS, "question", "answer", "study", "patient", "split", "view",
    "order", "language",
)  # fmt: skip
"""What a column can be."""

# Of these a cell can hold several.
_LISTS = ("image", "view")
_VAL_FRACTION, _TEST_FRACTION = 0.1, 0.2
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip


def studies(
    path: pathlib.Path, image_root: pathlib.Path, columns: Mapping[str, str]
) -> source.Source:
  """The studies of a table (`.csv`, else JSON lines; either may end in `.gz`).

  `columns` names the column of each of KEYS that the table has, image or one with text at least; a
  row must have one of them. Several images stand in one cell, with `;` between them or as a JSON
  list; their views likewise, unknown without `view`. A `report` is free text,
  whose headings are looked for; a section with a column of its own comes from there. Rows with the
  same `study` make one; without it each row is a study. A row with a `question` and an `answer` is
  a study of its own, ID:1, ID:2 … in the order of the rows of the study ID, and may show pictures
  of other rows. Without `patient` a study is one. Without `split` patients are split 70 / 10 / 20
  by a hash. Columns with the CheXpert findings' names are the labels; without any they come from
  the report.

  Raises UserError for a column that is not there and for a key that is not one of KEYS.
  """
  for key in columns:
    if key not in KEYS:
      raise UserError(f"--columns: {key!r} is not known; use some of {', '.join(KEYS)}.")
  if not {"image", "report", *SECTIONS} & set(columns):
    raise UserError("--columns names neither an image nor a report; name one of them.")
  if ("question" in columns) != ("answer" in columns):
    raise UserError("--columns names only one of question and answer; name both.")
  if path.name.lower().removesuffix(".gz").endswith(".csv"):
    rows: Any = files.read_table(path, tuple(columns.values()))
  else:
    rows = files.read_json_lines(path)
  parse = functools.partial(_parse, image_root, columns)
  description = {
      "source": "table", "table_sha256": files.file_sha256(path), "columns": dict(columns)
  }  # fmt: skip
  parsed = _number_questions(source.parse_rows(rows, parse))
  return source.gather(description, parsed, merge="study" in columns)


def _number_questions(
    rows: Iterable[source.Row | source.Refusal],
) -> Iterator[source.Row | source.Refusal]:
  """The rows, those with a question by an id of their own."""
  counts: collections.Counter[str] = collections.Counter()
  for row in rows:
    if isinstance(row, source.Row) and row.question:
      counts[row.study_id] += 1
      row = dataclasses.replace(row, study_id=f"{row.study_id}:{counts[row.study_id]}")
    yield row


def _parse(
    image_root: pathlib.Path, columns: Mapping[str, str], where: str, row: dict[str, Any]
) -> source.Row:
  cells = _cells(columns, where, row)
  paths, views = (_list(row[columns[key]]) if key in columns else [] for key in _LISTS)
  report = _report(cells)
  if not any(paths) and report is None:
    raise BadRow("no content", f"{where} has neither an image nor a report; mend or remove it.")
  question, answer = (cells.get(key, "") for key in ("question", "answer"))
  if bool(question) != bool(answer):
    has, lacks = ("question", "answer") if question else ("answer", "question")
    raise BadRow(f"no {lacks}", f"{where} has {has} but no {lacks}; mend or remove the row.")
  row_id = where.rpartition(" ")[2]
  study_id = _id("study", columns, cells, where) if "study" in columns else row_id
  patient_id = _id("patient", columns, cells, where) if "patient" in columns else study_id
  if "split" in columns:
    split = _SPLITS.get(cells["split"].lower(), "")
  else:
    split = source.hash_split("table", patient_id, _VAL_FRACTION, _TEST_FRACTION)
  if not split:
    known = ", ".join(_SPLITS)
    raise BadRow("no split", f"{where} has a split that is not one of {known}; mend the cell.")
  found = files.label_cells(row, where)
  return source.Row(
      study_id=study_id,
      patient_id=patient_id,
      split=split,
      where=where,
      pictures=tuple(
          source.picture_file(
              source.view_of(view),
              files.inside(image_root, path, where),
          )
          for path, view in itertools.zip_longest(paths, views[: len(paths)], fillvalue="")
          if path
      ),
      report=report,
      labels=found if (found != labels_lib.UNKNOWN).any() else None,
      order=_order(cells.get("order", "")),
      question=" ".join(question.split()),
      answer=" ".join(answer.split()),
  )


def _cells(columns: Mapping[str, str], where: str, row: dict[str, Any]) -> dict[str, str]:
  """The texts of the columns that are named, by key."""
  cells = {}
  for key, column in columns.items():
    if column not in row:
      raise BadRow(f"no {key}", f"{where} has no {column!r} ({key}); mend the row.")
    value = row[column]
    if isinstance(value, dict) or (isinstance(value, list) and key not in _LISTS):
      raise BadRow(f"no usable {key}", f"{where} has no usable {column!r}; mend the row.")
    cells[key] = _text(value)
  return cells


def _id(key: str, columns: Mapping[str, str], cells: Mapping[str, str], where: str) -> str:
  return files.required({columns[key]: cells[key]}, columns[key], where)


def _text(value: Any) -> str:
  """A value as text; empty for None and NaN, which pandas writes for an empty cell."""
  is_empty = value is None or (isinstance(value, float) and math.isnan(value))
  return "" if is_empty else str(value).strip()


def _list(value: Any) -> list[str]:
  """The texts of a list, of one written as JSON, or between the `;` of a text."""
  if isinstance(value, str) and value.lstrip().startswith("["):
    # A name can begin with a bracket too.
    with contextlib.suppress(ValueError, RecursionError):
      value = json.loads(value)
  items = value if isinstance(value, list) else _text(value).split(";")
  return [_text(item) for item in items]


def _report(cells: Mapping[str, str]) -> source.ReadSections | None:
  sections = {}
  if cells.get("report"):
    parsed = parse_sections(cells["report"])
    sections = {name: getattr(parsed, name) for name in SECTIONS}
  sections |= {name: cells[name] for name in SECTIONS if cells.get(name)}
  if not any(sections.values()):
    return None
  language = {"language": cells["language"]} if cells.get("language") else {}
  return source.given_sections(**sections, **language)


def _order(text: str) -> tuple[bool, float, str] | None:
  """Numbers (as a date of digits is one) by value, then texts such as 2020-01-31."""
  if not text:
    return None
  try:
    number = float(text)
  except ValueError:
    return True, 0.0, text
  return (False, number, "") if math.isfinite(number) else None
