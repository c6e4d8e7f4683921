"""CheXpert Plus (Chambon et al. 2024, arXiv 2405.19538): CheXpert's images with their reports."""

import functools
import itertools
import os
import pathlib
import re

import numpy as np

from chexmix_jax.data import reports
from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import BadRow

_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_STUDY = re.compile(r"(?:^|/)(patient\d+/study\d+)/[^/]+$")
_LABELED = ("findings", "impression", "report")
_COLUMNS = (
    "path_to_image", "frontal_lateral", "deid_patient_id", "patient_report_date_order", "split",
    "report", "section_clinical_history", "section_history", "section_findings",
    "section_impression",
)  # fmt: skip


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """Every study of `df_chexpert_plus_*.csv` (`valid` is val) with all its images.

  The table names .jpg files where the release has .png: all images are taken to end as the first
  one found, or in .png where none is. They are looked up in `image_root`, or in `PNG` in it where
  that is there, as the release unpacks. A study's report is that of its first image; those of the
  others differ in made-up dates. Where it has neither findings nor impression, the whole report is
  cut by its headings. A patient's studies are in the set's own order of the reports.

  Labels are CheXbert's in `chexbert_labels/{findings,impression,report}_fixed.json`, from the first
  of these files that is there and whose section is not empty: of an empty one CheXbert says No
  Finding.

  Raises UserError for a missing table or column. Refused lines of the labels' files are counted
  beside the rows of the table.
  """
  table = files.find_file(data_dir, "df_chexpert_plus_*.csv", "CheXpert Plus")
  tables = {"table": table}
  labels: dict[str, dict[str, np.ndarray]] = {section: {} for section in _LABELED}
  rows = []
  for section in _LABELED:
    path = data_dir / "chexbert_labels" / f"{section}_fixed.json"
    if path.is_file():
      tables[f"{section}_labels"] = path
      keep = functools.partial(_keep_labels, labels[section])
      rows.append(source.parse_rows(files.read_json_lines(path), keep))
  if (image_root / "PNG").is_dir():
    image_root /= "PNG"
  found = (path.suffix for path in image_root.glob("*/patient*/study*/*"))
  suffix = next((s for s in found if s in (".png", ".jpg")), ".png")
  parse = functools.partial(_parse, image_root, suffix, labels)
  rows.append(source.parse_rows(files.read_table(table, _COLUMNS), parse))
  sums = {f"{name}_sha256": files.file_sha256(path) for name, path in tables.items()}
  return source.gather(
      {"source": "chexpert_plus"} | sums, itertools.chain.from_iterable(rows), merge=True
  )


def _keep_labels(known: dict[str, np.ndarray], where: str, row: dict[str, str]) -> None:
  path = files.required(row, "path_to_image", where)
  if path in known:
    raise BadRow("duplicate id", f"{where} names an image that stands before; remove one.")
  known[path] = files.label_cells(row, where)


def _parse(
    image_root: pathlib.Path,
    suffix: str,
    labels: dict[str, dict[str, np.ndarray]],
    where: str,
    row: dict[str, str],
) -> source.Row:
  name, patient_id = (
      files.required(row, key, where) for key in ("path_to_image", "deid_patient_id")
  )
  match = _STUDY.search(name)
  if not match:
    raise BadRow("no study", f"{where} has a path without patient and study; mend the cell.")
  if row["split"] not in _SPLITS:
    known = ", ".join(_SPLITS)
    raise BadRow("no split", f"{where} has a 'split' that is none of {known}; mend the cell.")
  path = files.inside(image_root, os.path.splitext(name)[0] + suffix, where)
  texts = {
      "findings": row["section_findings"].strip(),
      "impression": row["section_impression"].strip(),
      "report": row["report"].strip(),
  }
  indication = row["section_clinical_history"].strip() or row["section_history"].strip()
  order = row["patient_report_date_order"].removesuffix(".0")
  return source.Row(
      study_id=match[1],
      patient_id=patient_id,
      split=_SPLITS[row["split"]],
      where=where,
      pictures=(source.picture_file(source.view_of(row["frontal_lateral"]), path),),
      report=_sections(indication, **texts),
      labels=next((labels[s][name] for s in _LABELED if texts[s] and name in labels[s]), None),
      order=int(order) if re.fullmatch("[0-9]{1,9}", order) else None,
  )


def _sections(indication: str, findings: str, impression: str, report: str) -> source.ReadSections:
  if not (findings or impression):
    parsed = reports.parse_sections(report)
    indication = indication or parsed.indication
    findings, impression = parsed.findings, parsed.impression
  return source.given_sections(indication=indication, findings=findings, impression=impression)
