"""Reading the tables of a set: CSV, JSON and JSON lines, plain or gzipped; paths in them."""

import csv
import gzip
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources.source import Refusal
from chexmix_jax.errors import BadRow, UserError

# Longer than any report; the default of 131,072 would end the whole table.
LONGEST_CELL = 1 << 26


def find_file(data_dir: pathlib.Path, pattern: str, what: str) -> pathlib.Path:
  """The one file of `pattern` (a glob) in `data_dir`, or of it with .gz; UserError if none.

  `what` names the set, for the message. Of several the last by name counts, the newest version.
  """
  found = sorted([*data_dir.glob(pattern), *data_dir.glob(f"{pattern}.gz")])
  if not found:
    raise UserError(f"{data_dir} has no {pattern}; give the {what} folder.")
  return found[-1]


def open_text(path: pathlib.Path) -> IO[str]:
  """The file as text, unzipped where its name ends in .gz; bytes that are no UTF-8 are kept."""
  opener = gzip.open if path.suffix == ".gz" else open
  try:
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[return-value]
  except OSError as error:
    raise UserError(f"{path} cannot be read ({_reason(error)}); mend the path.") from error


def read_text(path: pathlib.Path) -> str:
  """A UTF-8 file's text; UserError when it is missing or of another encoding."""
  try:
    with open_text(path) as file:
      text = file.read()
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"{path} cannot be read ({_reason(error)}); mend or replace it.") from error
  if not is_utf8(text):
    raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.")
  return text


def is_utf8(text: str) -> bool:
  """Whether a text from `open_text` was UTF-8."""
  return text.isascii() or not any("\udc80" <= c <= "\udcff" for c in text)


def read_table(
    path: pathlib.Path, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, str] | Refusal]]:
  """(where, row) of a CSV file that must have `columns`; other columns come along.

  A row with too few cells or not in UTF-8 is a Refusal. UserError for what is no such table.
  """
  csv.field_size_limit(LONGEST_CELL)
  with open_text(path) as file:
    reader = csv.DictReader(file)
    try:
      missing = [name for name in columns if name not in (reader.fieldnames or ())]
      if missing:
        raise UserError(f"{path} has no column {missing[0]!r}; give the set's own table.")
      for number, row in enumerate(reader, start=2):
        where = f"{path} row {number}"
        if any(row[name] is None for name in columns):
          sentence = f"{where} has too few cells; mend the row or replace the file."
          yield where, Refusal("row", where, "too few cells", sentence)
        elif not all(is_utf8(cell) for cell in row.values() if isinstance(cell, str)):
          sentence = f"{where} is not UTF-8 text; save the file as UTF-8."
          yield where, Refusal("row", where, "encoding", sentence)
        else:
          # Cells beyond the header's are under None, and those that a row lacks are None.
          yield where, {k: v or "" for k, v in row.items() if k is not None}
    except (csv.Error, OSError, EOFError, zlib.error) as error:
      raise UserError(f"{path} is not a readable CSV table ({error}); replace the file.") from error


def read_json(path: pathlib.Path) -> Any:
  """The content of a JSON file; UserError where it is none."""
  try:
    return json.loads(read_text(path))
  except json.JSONDecodeError as error:
    raise UserError(
        f"{path} is not JSON (line {error.lineno}: {error.msg}); mend or replace the file."
    ) from error
  except RecursionError as error:
    raise UserError(f"{path} is nested too deeply to be a table; replace the file.") from error


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any] | Refusal]]:
  """(where, object) of every line; a line that is no JSON object is a Refusal."""
  with open_text(path) as file:
    try:
      for number, line in enumerate(file, start=1):
        if not line.strip():
          continue
        where = f"{path} row {number}"
        try:
          row = json.loads(line) if is_utf8(line) else None
          json.dumps(row, ensure_ascii=False).encode()  # Fails for half a character, as \ud800.
        except (ValueError, RecursionError):
          row = None
        if isinstance(row, dict):
          yield where, row
        else:
          sentence = f"{where} is not a JSON object in UTF-8; mend or remove the line."
          yield where, Refusal("row", where, "encoding", sentence)
    except (OSError, EOFError, zlib.error) as error:
      raise UserError(f"{path} cannot be read ({_reason(error)}); replace it.") from error


def inside(root: pathlib.Path, path: str, where: str) -> pathlib.Path:
  """`root / path`; BadRow where that does not lie in `root`, whatever its dots or its first /."""
  if not path.strip():
    raise BadRow("no image path", f"{where} names no image; mend or remove the row.")
  # As texts: a table of a set has hundreds of thousands of paths.
  folder = os.path.abspath(root)
  joined = os.path.normpath(os.path.join(folder, path))
  if not joined.startswith(folder.rstrip(os.sep) + os.sep):
    raise BadRow(
        "path outside",
        f"{where} names a file outside {root}; mend the path or name an --image_root above both.",
    )
  return pathlib.Path(joined)


def required(row: dict[str, Any], key: str, where: str) -> str:
  """The cell `key` as text; BadRow where it is empty."""
  value = str(row.get(key) or "").strip()
  if not value:
    raise BadRow(f"no {key}", f"{where} has no {key!r}; mend or remove the row.")
  return value


def label_cells(
    row: dict[str, Any], where: str, findings: Sequence[str] = labels_lib.CHEXPERT_14
) -> np.ndarray:
  """int8 (F,) of the columns with the findings' names; empty or absent is UNKNOWN.

  BadRow for a value other than 1, 0, -1 and nothing.
  """
  labels = np.full(len(findings), labels_lib.UNKNOWN, np.int8)
  for i, name in enumerate(findings):
    cell = row.get(name)
    if cell is None or cell == "":
      continue
    try:
      value = float(cell)
    except (TypeError, ValueError, OverflowError):
      value = np.nan
    if value not in (1, 0, -1):
      raise BadRow("label", f"{where} has a {name!r} that is not 1, 0, -1 or empty; mend the cell.")
    labels[i] = int(value)
  return labels


def file_sha256(path: pathlib.Path) -> str:
  """Hex digest of a file's bytes; UserError when it cannot be read."""
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({_reason(error)}); mend the path.") from error


def _reason(error: Exception) -> str:
  errno = getattr(error, "errno", None)
  return os.strerror(errno) if errno else "damaged"
