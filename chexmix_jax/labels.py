"""The 14 CheXpert findings, their values and the policies that make targets of them.

Order and names: Irvin et al. 2019 (CheXpert, arXiv 1901.07031), table 1.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from chexmix_jax.errors import UserError

CHEXPERT_14 = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
CHEXPERT_5 = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
INDEX = {name: i for i, name in enumerate(CHEXPERT_14)}

# What is a Lung Opacity too, in the label hierarchy of the same paper (figure 1).
OPACITIES = ("Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")

PHRASES = {
    "Enlarged Cardiomediastinum": ("The mediastinum is widened.", "The mediastinum is normal."),
    "Cardiomegaly": ("The heart is enlarged.", "The heart is normal in size."),
    "Lung Opacity": ("There is an opacity in the lungs.", "The lungs are clear."),
    "Lung Lesion": ("There is a lung nodule.", "There is no lung nodule."),
    "Edema": ("There is pulmonary edema.", "There is no pulmonary edema."),
    "Consolidation": ("There is consolidation.", "There is no consolidation."),
    "Pneumonia": ("There is pneumonia.", "There is no pneumonia."),
    "Atelectasis": ("There is atelectasis.", "There is no atelectasis."),
    "Pneumothorax": ("There is a pneumothorax.", "There is no pneumothorax."),
    "Pleural Effusion": ("There is a pleural effusion.", "There is no pleural effusion."),
    "Pleural Other": ("There is pleural thickening.", "There is no pleural thickening."),
    "Fracture": ("There is a fracture.", "There is no fracture."),
    "Support Devices": ("There are support devices.", "There are no support devices."),
}
"""Finding -> what a report says where it is there, and where it is not."""

NOTHING_FOUND = "No acute cardiopulmonary abnormality."
"""What a report says where no finding is there."""

POSITIVE, NEGATIVE, UNCERTAIN, UNKNOWN = 1, 0, -1, -2
"""Values of a label; UNKNOWN is "not mentioned", an empty cell in the published tables."""

# The U-Ones / U-Zeros choice per finding that Irvin et al. 2019 found best (section 5).
_MIXED_POSITIVE = ("Atelectasis", "Edema", "Pleural Effusion")

# NIH ChestX-ray14 names (Wang et al. 2017) and their CheXpert counterparts.
_NIH14 = {
    "Cardiomegaly": "Cardiomegaly", "Infiltration": "Lung Opacity", "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion", "Edema": "Edema", "Consolidation": "Consolidation",
    "Pneumonia": "Pneumonia", "Atelectasis": "Atelectasis", "Pneumothorax": "Pneumothorax",
    "Effusion": "Pleural Effusion", "Pleural_Thickening": "Pleural Other", "Emphysema": None,
    "Fibrosis": None, "Hernia": None,
}  # fmt: skip
NIH14 = tuple(_NIH14)
NIH14_NOTHING = "No Finding"
"""What a row of theirs names where it names none of NIH14."""


def from_nih14(names: Iterable[str]) -> np.ndarray:
  """int8 (14,) from NIH ChestX-ray14 finding names; what is not named is negative.

  A fracture or a device is not annotated there, so both stay UNKNOWN. Consolidation, pneumonia,
  edema, atelectasis, masses and nodules are opacities too (the CheXpert label hierarchy).
  """
  labels = np.full(len(CHEXPERT_14), NEGATIVE, np.int8)
  labels[[INDEX["Fracture"], INDEX["Support Devices"]]] = UNKNOWN
  for name in check_nih14(names):
    counterpart = NIH14_NOTHING if name == NIH14_NOTHING else _NIH14[name]
    if counterpart:
      labels[INDEX[counterpart]] = POSITIVE
  mark_opacity(labels)
  return labels


def check_nih14(names: Iterable[str]) -> list[str]:
  """The names, if NIH ChestX-ray14 has them all; UserError that names the first it has not."""
  names = list(names)
  for name in names:
    if name not in (*NIH14, NIH14_NOTHING):
      known = ", ".join((*NIH14, NIH14_NOTHING))
      raise UserError(f"{name!r} is not an NIH ChestX-ray14 finding; use one of {known}.")
  return names


def mark_opacity(labels: np.ndarray) -> None:
  """Makes Lung Opacity of labels (14,) positive where one of OPACITIES is; in place."""
  if any(labels[INDEX[name]] == POSITIVE for name in OPACITIES):
    labels[INDEX["Lung Opacity"]] = POSITIVE


def describe_labels(labels: np.ndarray) -> str:
  """What labels (14,) say in words: a sentence of PHRASES for each positive finding, in order.

  NOTHING_FOUND where none is positive or uncertain and No Finding is not denied. Beside positive
  findings uncertain ones are left out. "" where the labels say neither.
  """
  no_finding, *values = labels.tolist()
  found = [name for name, v in zip(CHEXPERT_14[1:], values, strict=True) if v == POSITIVE]
  if found:
    return " ".join(PHRASES[name][0] for name in found)
  is_normal = no_finding == UNKNOWN and NEGATIVE in values and UNCERTAIN not in values
  return NOTHING_FOUND if is_normal or no_finding == POSITIVE else ""


Policy = Literal["mixed", "ones", "zeros", "ignore"]
"""What an uncertain label counts as: by finding, positive, negative, or not at all."""


def apply_policy(
    labels_XF: np.ndarray, policy: Policy, findings: Sequence[str] = CHEXPERT_14
) -> np.ndarray:
  """Targets (..., F), float32: 1, 0, and NaN for what `ignore` leaves out. Unknown is 0.

  The U-policies of Irvin et al. 2019 (section 4); `mixed` takes for each finding the one that they
  found best, and zero for findings that are none of theirs.
  """
  by_finding_F = np.array([float(name in _MIXED_POSITIVE) for name in findings])
  uncertain_as = {
      "mixed": by_finding_F,
      "ones": np.ones_like(by_finding_F),
      "zeros": np.zeros_like(by_finding_F),
      "ignore": np.full_like(by_finding_F, np.nan),
  }[policy]
  return np.where(labels_XF == UNCERTAIN, uncertain_as, labels_XF == POSITIVE).astype(np.float32)


def have_both_kinds(targets: Iterable[np.ndarray], least: int = 1) -> np.ndarray:
  """Of which findings each of `targets`, (N, F), has `least` positives and negatives, bool (F,)."""
  return np.all(
      [np.sum(table_NF == kind, axis=0) >= least for table_NF in targets for kind in (0, 1)], axis=0
  )
