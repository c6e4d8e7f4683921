"""OpenI / Indiana University chest X-rays as on Kaggle (Demner-Fushman et al. 2016)."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np

from chexmix_jax.data import images
from chexmix_jax.data.sources import source
from chexmix_jax.errors import UserError

_VAL_FRACTION, _TEST_FRACTION = 0.1, 0.2


def studies(data_dir: pathlib.Path, label_fn: Callable[[str], np.ndarray]) -> source.Source:
  """Every report with a frontal projection, with the first one; findings, then impression.

  The set names no patients: a `uid` is one patient's one visit, so the splits go by a hash of it.

  Raises UserError for a missing table or column, and for a projection without a report.
  """
  reports_path = data_dir / "indiana_reports.csv"
  projections_path = data_dir / "indiana_projections.csv"
  reports = {
      row["uid"]: (number, source.clean_report(f"{row['findings']} {row['impression']}"))
      for number, row in enumerate(
          source.read_table(reports_path, ("uid", "findings", "impression")), start=2
      )
  }
  projections = source.read_table(projections_path, ("uid", "filename", "projection"))
  found: dict[str, source.Study] = {}
  for number, row in enumerate(projections, start=2):
    uid = row["uid"]
    if row["projection"] != "Frontal" or uid in found:
      continue
    if uid not in reports:
      raise UserError(
          f"{projections_path} row {number} has a uid without a row in {reports_path.name}; add"
          " the report or remove the projection."
      )
    report_row, report = reports[uid]
    path = data_dir / "images" / "images_normalized" / row["filename"]
    content = functools.partial(_content, path, report, label_fn)
    where = f"{reports_path} row {report_row}"
    found[uid] = source.Study(uid, uid, _split(uid), where, content)
  if not found:
    raise UserError(f"{projections_path} lists no Frontal projection; give the set's own table.")
  description = {
      "source": "openi",
      "reports_sha256": source.file_sha256(reports_path),
      "projections_sha256": source.file_sha256(projections_path),
  }
  return source.Source(description, tuple(found.values()))


def _split(uid: str) -> str:
  fraction = source.hash_fraction(f"openi:{uid}")
  if fraction < _VAL_FRACTION:
    return "val"
  return "test" if fraction < _VAL_FRACTION + _TEST_FRACTION else "train"


def _content(
    path: pathlib.Path, report: str, label_fn: Callable[[str], np.ndarray], size: int
) -> source.StudyContent:
  return source.StudyContent(
      images.grey(images.read_image(path, size)), report, label_fn(report)
  )
