"""covid-chestxray-dataset (Cohen et al. 2020, arXiv 2003.11597): figures with clinical notes."""

import functools
import pathlib

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources import files, source

_COLUMNS = ("patientid", "finding", "view", "modality", "folder", "filename", "clinical_notes")
_VAL_FRACTION, _TEST_FRACTION = 0.1, 0.2
# Views of a CT.
_SKIPPED = ("axial", "coronal")
# The names in a path of them; older versions of the table have the last one only.
_PNEUMONIAS = (
    "pneumonia", "covid-19", "sars", "pneumocystis", "streptococcus", "klebsiella", "legionella",
    "e.coli", "varicella", "influenza", "mycoplasma", "lipoid", "chlamydophila", "mers-cov",
    "herpes", "aspergillosis", "nocardia", "staphylococcus", "bacterial", "viral", "fungal",
)  # fmt: skip


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """Every X-ray of `metadata.csv`, one study each; rows of CT are skipped.

  The notes stand as the findings of the report. A patient's images are ordered by `offset`, days
  from the onset. The set has no split: patients are split 70 / 10 / 20 by a hash. Of the findings
  only pneumonia (an opacity too) and No Finding have a CheXpert counterpart; the rest is unknown.

  Raises UserError for a missing table or column.
  """
  table = files.find_file(data_dir, "metadata.csv", "covid-chestxray-dataset")
  rows = source.parse_rows(
      files.read_table(table, _COLUMNS), functools.partial(_parse, image_root)
  )
  description = {"source": "covid", "table_sha256": files.file_sha256(table)}
  return source.gather(description, rows, merge=False)


def _parse(image_root: pathlib.Path, where: str, row: dict[str, str]) -> source.Row | None:
  view = row["view"].strip()
  if row["modality"].strip().lower() != "x-ray" or view.lower().startswith(_SKIPPED):
    return None
  name = files.required(row, "filename", where)
  patient_id = files.required(row, "patientid", where)
  path = files.inside(image_root, f"{row['folder'].strip() or '.'}/{name}", where)
  notes = row["clinical_notes"].strip()
  return source.Row(
      study_id=name,
      patient_id=patient_id,
      split=source.hash_split("covid", patient_id, _VAL_FRACTION, _TEST_FRACTION),
      where=where,
      pictures=(source.picture_file(source.view_of(view), path),),
      report=source.given_sections(findings=notes) if notes else None,
      labels=_labels(row["finding"]),
      order=_number(row.get("offset", "")),
  )


def _labels(finding: str) -> np.ndarray:
  """From a path of names such as Pneumonia/Viral/COVID-19."""
  labels = np.full(len(labels_lib.CHEXPERT_14), labels_lib.UNKNOWN, np.int8)
  if finding.strip().lower() == "no finding":
    labels[labels_lib.INDEX["No Finding"]] = labels_lib.POSITIVE
  elif any(name in finding.lower() for name in _PNEUMONIAS):
    labels[[labels_lib.INDEX["Pneumonia"], labels_lib.INDEX["Lung Opacity"]]] = labels_lib.POSITIVE
  return labels


def _number(text: str) -> float | None:
  try:
    number = float(text)
  except ValueError:
    return None
  return number if np.isfinite(number) else None
