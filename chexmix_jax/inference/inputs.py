"""What pictures there are to predict from: a file, a folder, a CSV or a ReXrank JSON."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from chexmix_jax.data import dicom, images
from chexmix_jax.data.rexrank import read_cases
from chexmix_jax.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A file's path, a picture, or an array."""

_COLUMNS = ("image_path", "path", "image")


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Pictures in the order of their results.

  Attributes:
    names: of the pictures, for the results: the path within the folder, the cell of the CSV, or the
      case id of the ReXrank JSON.
    paths: of their files, which need not be there.
    cases: case id -> entry of the ReXrank JSON; None for any other input.
    texts: what stands beside the pictures, by key of the columns that were asked for.
  """

  names: tuple[str, ...]
  paths: tuple[pathlib.Path, ...]
  cases: dict[str, dict[str, Any]] | None = None
  texts: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def list_inputs(
    path: pathlib.Path,
    image_column: str | None = None,
    image_root: pathlib.Path | None = None,
    text_columns: Mapping[str, str] | None = None,
) -> Inputs:
  """The pictures of `path`.

    a PNG, JPEG or DICOM file
    a folder      all such files in and below it, sorted
    a CSV         of the column `image_column`, by default image_path, path or image, the first that
                  is there, in upper or lower case
    a JSON        as ReXrank has it: case id -> entry with `key_image_path`, or else `image_path`,
                  a path or a list of which the first counts

  Paths in a CSV or JSON start from `image_root`, even those that begin with a slash, and by default
  from the folder of that file. `text_columns` are columns of the CSV, or keys of the JSON's
  entries, whose texts are wanted too, by a key of one's own; an empty cell and a null are "".

  Raises UserError where there is no picture or no such column, and where there are DICOM files and
  pydicom is missing.
  """
  suffix, text_columns = path.suffix.lower(), text_columns or {}
  if path.is_dir():
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in images.SUFFIXES)
    inputs = Inputs(tuple(p.relative_to(path).as_posix() for p in files), tuple(files))
  elif suffix in images.SUFFIXES:
    inputs = Inputs((path.name,), (path,))
  elif suffix == ".csv":
    columns, rows = _read_csv(path)
    column = _find_column(path, columns, image_column)
    for name, row in rows.items():
      if not (row[column] or "").strip():
        raise UserError(f"{name} of {path} has no {column}; fill it in or remove the row.")
    cells = [row[column].strip() for row in rows.values()]
    files = [_place(path, image_root, cell) for cell in cells]
    inputs = Inputs(tuple(cells), tuple(files), texts=_texts(path, text_columns, rows))
  elif suffix == ".json":
    cases = read_cases(path)
    files = [_place(path, image_root, _key_image(path, *case)) for case in cases.items()]
    entries = {f"Case {name}": case for name, case in cases.items()}
    inputs = Inputs(tuple(cases), tuple(files), cases, _texts(path, text_columns, entries))
  else:
    raise UserError(
        f"{path} is no picture, folder, CSV or JSON by its name; name one of them by --input."
    )
  if len(inputs.texts) < len(text_columns):
    raise UserError(
        f"{path} holds pictures without texts; name a CSV or a ReXrank JSON that has"
        f" {' and '.join(text_columns.values())} by --input."
    )
  if not inputs.paths:
    raise UserError(f"{path} has no picture; name another --input.")
  if any(p.suffix.lower() in dicom.SUFFIXES for p in inputs.paths):
    dicom.check_installed()
  return inputs


def as_pixels(picture: Picture, size: int, channels: int) -> np.ndarray:
  """float32 (size, size, channels) in [-1, 1], read as data/images.py reads.

  A picture of Pillow's is read as a PNG, or as a JPEG where that is its format; an array of
  integers (H, W) or (H, W, colours) as the raw array of a PNG. Floats are pixels already, (size,
  size) or with channels at the end, in [-1, 1]. Raises UserError for anything else.
  """
  if isinstance(picture, np.ndarray) and np.issubdtype(picture.dtype, np.floating):
    pixels = picture[..., None] if picture.ndim == 2 else picture
    if pixels.shape not in ((size, size, 1), (size, size, channels)):
      raise UserError(
          f"Pixels of shape {picture.shape} must have {size} x {size} places and 1 or {channels}"
          " channel(s); give integers to have them resized."
      )
    return np.broadcast_to(pixels.astype(np.float32), (size, size, channels))
  if isinstance(picture, np.ndarray):
    try:
      if picture.ndim < 2:
        raise ValueError("Pillow would take it for a column.")
      rgb = images.from_raw(picture, size)
    except (TypeError, ValueError) as error:
      raise UserError(
          f"An array of shape {picture.shape} and type {picture.dtype} is no picture; give integers"
          " of shape (H, W) or (H, W, 3)."
      ) from error
  elif isinstance(picture, Image.Image):
    is_jpeg = picture.format == "JPEG"
    rgb = images.from_jpeg(picture, size) if is_jpeg else images.from_raw(np.asarray(picture), size)
  else:
    rgb = images.read_image(picture, size)
  return images.to_float(rgb if channels > 1 else images.grey(rgb)[..., None])


def _read_csv(path: pathlib.Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
  """The names of the columns, and the rows by `Row NUMBER`."""
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file)
      rows = {f"Row {number}": row for number, row in enumerate(reader, start=2)}
      return list(reader.fieldnames or ()), rows
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"{path} cannot be read as a CSV ({error}); mend the file.") from error


def _texts(
    path: pathlib.Path, columns: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[str, ...]]:
  """The cells of the columns of texts, by their keys."""
  texts: dict[str, list[str]] = {key: [] for key in columns}
  for name, row in rows.items():
    for key, column in columns.items():
      if column not in row:
        raise UserError(
            f"{name} of {path} has no {column!r} for the {key} of --documents; add it, or name"
            f" another by --columns={key}=COLUMN."
        )
      cell = row[column]
      texts[key].append("" if cell is None or cell != cell else str(cell).strip())  # NaN: no text.
  return {key: tuple(cells) for key, cells in texts.items()}


def _find_column(path: pathlib.Path, columns: Sequence[str], name: str | None) -> str:
  if name is not None:
    found = [column for column in columns if column == name]
  else:
    by_lower = {column.lower(): column for column in reversed(columns)}
    found = [by_lower[known] for known in _COLUMNS if known in by_lower]
  if not found:
    raise UserError(
        f"{path} has no column {name or ', '.join(_COLUMNS)}; name one of"
        f" {', '.join(columns) or 'its columns'} by --image_column."
    )
  return found[0]


def _key_image(path: pathlib.Path, name: str, case: dict[str, Any]) -> str:
  """The picture that a model for one picture a case is given."""
  for key in ("key_image_path", "image_path"):
    value = case.get(key)
    value = value[0] if isinstance(value, list) and value else value
    if isinstance(value, str) and value:
      return value
  raise UserError(f"Case {name} of {path} has neither key_image_path nor image_path; add one.")


def _place(path: pathlib.Path, root: pathlib.Path | None, written: str) -> pathlib.Path:
  return path.parent / written if root is None else root / written.lstrip("/")
