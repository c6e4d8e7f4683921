"""OpenI / Indiana University chest X-rays as on Kaggle (Demner-Fushman et al. 2016)."""

import functools
import itertools
import pathlib

from chexmix_jax.data.sources import files, source

_VAL_FRACTION, _TEST_FRACTION = 0.1, 0.2
_SECTIONS = ("indication", "findings", "impression")


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """Every report with its projections.

  The set names no patients: a `uid` is one patient's one visit, so the splits go by a hash of it.
  Raises UserError for a missing table or column; a projection without a report is refused.
  """
  reports_path = data_dir / "indiana_reports.csv"
  projections_path = data_dir / "indiana_projections.csv"
  reports = files.read_table(reports_path, ("uid", "findings", "impression"))
  projections = files.read_table(projections_path, ("uid", "filename", "projection"))
  known: set[str] = set()
  rows = itertools.chain(
      source.parse_rows(reports, functools.partial(_report, known)),
      source.parse_rows(
          projections,
          functools.partial(_projection, known, image_root / "images" / "images_normalized"),
      ),
  )
  description = {
      "source": "openi",
      "reports_sha256": files.file_sha256(reports_path),
      "projections_sha256": files.file_sha256(projections_path),
  }
  return source.gather(description, rows, merge=True)


def _row(uid: str, where: str, **content) -> source.Row:
  split = source.hash_split("openi", uid, _VAL_FRACTION, _TEST_FRACTION)
  return source.Row(uid, uid, split, where, **content)


def _report(known: set[str], where: str, row: dict[str, str]) -> source.Row:
  uid = files.required(row, "uid", where)
  if uid in known:
    raise source.BadRow("duplicate id", f"{where} has a uid that stands before; remove one.")
  known.add(uid)
  sections = {name: row.get(name, "") for name in _SECTIONS}
  return _row(uid, where, report=source.given_sections(**sections))


def _projection(
    known: set[str], folder: pathlib.Path, where: str, row: dict[str, str]
) -> source.Row:
  uid = files.required(row, "uid", where)
  if uid not in known:
    raise source.BadRow(
        "no report", f"{where} has a uid without a report; add the report or remove the projection."
    )
  path = files.inside(folder, row["filename"], where)
  return _row(uid, where, pictures=(source.picture_file(source.view_of(row["projection"]), path),))
