"""CheXpert (Irvin et al. 2019, arXiv 1901.07031): images and labels; the set has no reports."""

import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import BadRow

_TOP = "CheXpert-v1.0"
_STUDY = re.compile(r"(?:^|/)(patient\d+)/study(\d{1,9})(?:/|$)")
_TEST_TABLES = ("groundtruth.csv", "test/groundtruth.csv", "test_labels.csv", "test.csv")

# (where, a path of a table) -> the patient, the study's number, the path on disk.
_Place = Callable[[str, str], tuple[str, int, pathlib.Path]]


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """The studies of `train.csv`, `valid.csv` (split val) and, where it is there, of the test set.

  The test set's table is `groundtruth.csv`, in `data_dir` or in `test` in it, with a row a study:
  all .jpg files in the study's folder are its images. Or it is `test_labels.csv` or `test.csv` with
  a row an image. `data_dir` is the folder of the tables or the one above it. The first folder of a
  table's path (`CheXpert-v1.0`, `CheXpert-v1.0-small`) is cut where `image_root` has no folder of
  that name. In the download of full size, patients lie in `CheXpert-v1.0 batch *` folders and are
  looked up there. A patient's studies are ordered by their number.

  Raises UserError for a missing table or column.
  """
  folder = next(
      (d for d in (data_dir, *sorted(data_dir.glob(f"{_TOP}*"))) if (d / "train.csv").is_file()),
      data_dir,
  )
  tables = {
      "train": files.find_file(folder, "train.csv", "CheXpert"),
      "val": files.find_file(folder, "valid.csv", "CheXpert"),
  }
  tests = (d / name for d in (data_dir, folder) for name in _TEST_TABLES)
  if test := next((path for path in tests if path.is_file()), None):
    tables["test"] = test
  place = functools.partial(_place, image_root, *_layout(image_root))
  rows = itertools.chain.from_iterable(_rows(*item, place) for item in tables.items())
  sums = {f"{split}_sha256": files.file_sha256(table) for split, table in tables.items()}
  return source.gather({"source": "chexpert"} | sums, rows, merge=True)


def _rows(
    split: str, table: pathlib.Path, place: _Place
) -> Iterator[source.Row | source.Refusal]:
  if table.name == "groundtruth.csv":
    columns, parse = ["Study"], _parse_study
  else:
    columns, parse = ["Path"] if split == "test" else ["Path", "Frontal/Lateral"], _parse_image
  rows = files.read_table(table, [*columns, *labels_lib.CHEXPERT_14])
  return source.parse_rows(rows, functools.partial(parse, place, split))


def _parse_image(place: _Place, split: str, where: str, row: dict[str, str]) -> source.Row:
  patient_id, number, path = place(where, files.required(row, "Path", where))
  view = row.get("Frontal/Lateral") or _view_in_name(path)
  pictures = (source.picture_file(source.view_of(view), path),)
  return _row(patient_id, number, split, where, pictures, row)


def _parse_study(place: _Place, split: str, where: str, row: dict[str, str]) -> source.Row:
  patient_id, number, folder = place(where, files.required(row, "Study", where))
  pictures = tuple(
      source.picture_file(source.view_of(_view_in_name(path)), path)
      for path in sorted(folder.glob("*.jpg"))
  )
  if not pictures:
    raise BadRow("missing image", f"{where}: its study has no .jpg on disk; fetch the files.")
  return _row(patient_id, number, split, where, pictures, row)


def _row(
    patient_id: str,
    number: int,
    split: str,
    where: str,
    pictures: tuple[source.Picture, ...],
    row: dict[str, str],
) -> source.Row:
  return source.Row(
      study_id=f"{patient_id}/study{number}",
      patient_id=patient_id,
      split=split,
      where=where,
      pictures=pictures,
      labels=files.label_cells(row, where),
      order=number,
  )


def _view_in_name(path: pathlib.Path) -> str:
  return path.stem.rpartition("_")[2]  # view1_frontal.jpg


def _layout(image_root: pathlib.Path) -> tuple[frozenset[str], dict[str, str]]:
  """Names of the `CheXpert-v1.0*` folders; the folder of each patient in those named batch."""
  tops = frozenset(path.name for path in image_root.glob(f"{_TOP}*"))
  batches = {
      path.name: str(path.relative_to(image_root))
      for patients in ("patient*", "valid/patient*")
      for path in image_root.glob(f"{_TOP} batch */{patients}")
  }
  return tops, batches


def _place(
    image_root: pathlib.Path, tops: frozenset[str], batches: dict[str, str], where: str, path: str
) -> tuple[str, int, pathlib.Path]:
  match = _STUDY.search(path)
  if not match:
    raise BadRow("no study", f"{where} has a path without patient and study; mend the cell.")
  first, _, rest = path.partition("/")
  if match[1] in batches:
    path = batches[match[1]] + path[match.end(1) :]
  elif first.startswith(_TOP) and first not in tops:
    path = rest
  return match[1], int(match[2]), files.inside(image_root, path, where)
