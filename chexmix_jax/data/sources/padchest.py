"""PadChest (Bustos et al. 2020, arXiv 1901.07441): 16-bit PNG with Spanish reports."""

import functools
import os
import pathlib
import re

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import BadRow

_TABLE = "PADCHEST_chest_x_ray_images_labels_*.csv"
_COLUMNS = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "Labels")
_VAL_FRACTION, _TEST_FRACTION = 0.1, 0.2
_VIEWS = {"PA": "frontal", "AP": "frontal", "AP_HORIZONTAL": "frontal", "L": "lateral"}
# Ribs, and pictures that the set's authors took out.
_SKIPPED = ("COSTAL", "EXCLUDE")

# A list of names as Python writes it, and a name in it.
_NAME = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_LIST = re.compile(rf"\[\s*(?:(?:{_NAME.pattern})\s*(?:,\s*|(?=\])))*\]")
# What says nothing of a finding.
_IGNORED = ("", "exclude", "unchanged", "suboptimal study")
# The set's names (the leaves and branches of its tree) of each CheXpert finding.
_NAMES = {
    "No Finding": ("normal",),
    "Enlarged Cardiomediastinum": ("mediastinal enlargement", "superior mediastinal enlargement"),
    "Cardiomegaly": ("cardiomegaly",),
    "Lung Opacity": (
        "infiltrates", "interstitial pattern", "reticular interstitial pattern",
        "reticulonodular interstitial pattern", "miliary opacities", "alveolar pattern",
        "air bronchogram", "ground glass pattern", "increased density",
    ),
    "Lung Lesion": ("nodule", "multiple nodules", "mass", "pulmonary mass", "lung metastasis"),
    "Edema": ("pulmonary edema",),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("pneumonia", "atypical pneumonia"),
    "Atelectasis": (
        "atelectasis", "atelectasis basal", "laminar atelectasis", "lobar atelectasis",
        "round atelectasis", "segmental atelectasis", "total atelectasis",
    ),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "Pleural Effusion": (
        "pleural effusion", "loculated pleural effusion", "loculated fissural effusion",
        "hydropneumothorax", "empyema", "hemothorax",
    ),
    "Pleural Other": (
        "pleural thickening", "apical pleural thickening", "calcified pleural thickening",
        "fissure thickening", "minor fissure thickening", "major fissure thickening",
        "pleural plaques", "calcified pleural plaques", "pleural mass",
    ),
    "Fracture": (
        "fracture", "rib fracture", "callus rib fracture", "clavicle fracture", "humeral fracture",
        "vertebral fracture",
    ),
    "Support Devices": (
        "electrical device", "pacemaker", "dai", "single chamber device", "dual chamber device",
        "artificial heart valve", "artificial aortic heart valve", "artificial mitral heart valve",
        "endotracheal tube", "tracheostomy tube", "nsg tube", "chest drain tube",
        "gastrostomy tube", "nephrostomy tube", "ventriculoperitoneal drain tube", "catheter",
        "central venous catheter", "reservoir central venous catheter",
        "central venous catheter via jugular vein", "central venous catheter via subclavian vein",
        "central venous catheter via umbilical vein",
    ),
}  # fmt: skip


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """The studies of the table, with all views of the chest; reports stay Spanish (`es`).

  Images lie in `image_root/ImageDir/ImageID`, or right in `image_root` where it has none of these
  folders. The set has no split: patients are split 70 / 10 / 20 by a hash. Studies are ordered by
  `StudyDate_DICOM`. Labels are the set's own: what it does not name is negative, and all is unknown
  where it names nothing but the likes of `unchanged` and `exclude`.

  Raises UserError for a missing table or column.
  """
  table = files.find_file(data_dir, _TABLE, "PadChest")
  parse = functools.partial(_parse, image_root, _in_folders(table, image_root))
  rows = source.parse_rows(files.read_table(table, _COLUMNS), parse)
  description = {"source": "padchest", "table_sha256": files.file_sha256(table)}
  return source.gather(description, rows, merge=True)


def _in_folders(table: pathlib.Path, image_root: pathlib.Path) -> bool:
  """Whether the folder of any row is there: the set comes a folder at a time."""
  seen: set[str] = set()
  for _, row in files.read_table(table, _COLUMNS):
    if isinstance(row, source.Refusal):
      continue
    folder = row["ImageDir"].strip()
    if folder and folder not in seen and os.path.isdir(image_root / folder):
      return True
    seen.add(folder)
  return False


def _parse(
    image_root: pathlib.Path, in_folders: bool, where: str, row: dict[str, str]
) -> source.Row | None:
  projection = row["Projection"].strip().upper()
  if projection in _SKIPPED:
    return None
  image, study, patient = (
      files.required(row, key, where) for key in ("ImageID", "StudyID", "PatientID")
  )
  if in_folders:
    image = f"{files.required(row, 'ImageDir', where)}/{image}"
  path = files.inside(image_root, image, where)
  report = row["Report"].strip()
  date = row.get("StudyDate_DICOM", "").strip()
  return source.Row(
      study_id=study,
      patient_id=patient,
      split=source.hash_split("padchest", patient, _VAL_FRACTION, _TEST_FRACTION),
      where=where,
      pictures=(source.picture_file(_VIEWS.get(projection, "unknown"), path),),
      report=source.given_sections(findings=report, language="es") if report else None,
      labels=_labels(row["Labels"], where),
      order=int(date) if date.isdecimal() else None,
  )


def _labels(text: str, where: str) -> np.ndarray:
  """From a list of names written as Python would; what is not named is negative."""
  labels = np.full(len(labels_lib.CHEXPERT_14), labels_lib.UNKNOWN, np.int8)
  if text.strip() in ("", "nan"):
    return labels
  if not _LIST.fullmatch(text.strip()):
    raise BadRow("label", f"{where} has a 'Labels' that is no list of names; mend the cell.")
  names = {(a or b).strip().lower() for a, b in _NAME.findall(text)}.difference(_IGNORED)
  if not names:
    return labels
  labels[:] = labels_lib.NEGATIVE
  for finding, counterparts in _NAMES.items():
    if not names.isdisjoint(counterparts):
      labels[labels_lib.INDEX[finding]] = labels_lib.POSITIVE
  labels_lib.mark_opacity(labels)
  return labels
