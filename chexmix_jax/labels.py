"""The 14 CheXpert findings, their values and the policies that make targets of them.

Order and names: Irvin et al. 2019 (CheXpert, arXiv 1901.07031), table 1.
"""

from collections.abc import Iterable
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

POSITIVE, NEGATIVE, UNCERTAIN, UNKNOWN = 1, 0, -1, -2
"""Values of a label; UNKNOWN is "not mentioned", an empty cell in the published tables."""

# The U-Ones / U-Zeros choice per finding that Irvin et al. 2019 found best (section 5).
_MIXED_POSITIVE = ("Atelectasis", "Edema", "Pleural Effusion")

# NIH ChestX-ray14 names (Wang et al. 2017) that have a CheXpert counterpart.
_NIH14 = {
    "No Finding": "No Finding", "Cardiomegaly": "Cardiomegaly", "Infiltration": "Lung Opacity",
    "Mass": "Lung Lesion", "Nodule": "Lung Lesion", "Edema": "Edema",
    "Consolidation": "Consolidation", "Pneumonia": "Pneumonia", "Atelectasis": "Atelectasis",
    "Pneumothorax": "Pneumothorax", "Effusion": "Pleural Effusion",
    "Pleural_Thickening": "Pleural Other", "Emphysema": None, "Fibrosis": None, "Hernia": None,
}  # fmt: skip


def from_nih14(names: Iterable[str]) -> np.ndarray:
  """int8 (14,) from NIH ChestX-ray14 finding names; what is not named is negative.

  A fracture or a device is not annotated there, so both stay UNKNOWN. Consolidation, pneumonia,
  edema, atelectasis, masses and nodules are opacities too (the CheXpert label hierarchy).
  """
  labels = np.full(len(CHEXPERT_14), NEGATIVE, np.int8)
  labels[[INDEX["Fracture"], INDEX["Support Devices"]]] = UNKNOWN
  for name in names:
    if name not in _NIH14:
      known = ", ".join(_NIH14)
      raise UserError(f"{name!r} is not an NIH ChestX-ray14 finding; use one of {known}.")
    if counterpart := _NIH14[name]:
      labels[INDEX[counterpart]] = POSITIVE
  mark_opacity(labels)
  return labels


def mark_opacity(labels: np.ndarray) -> None:
  """Makes Lung Opacity of labels (14,) positive where one of OPACITIES is; in place."""
  if any(labels[INDEX[name]] == POSITIVE for name in OPACITIES):
    labels[INDEX["Lung Opacity"]] = POSITIVE


Policy = Literal["mixed", "ones", "zeros", "ignore"]
"""What an uncertain label counts as: by finding, positive, negative, or not at all."""


def apply_policy(labels: np.ndarray, policy: Policy) -> np.ndarray:
  """Targets (..., 14), float32: 1, 0, and NaN for what `ignore` leaves out. Unknown is 0.

  The U-policies of Irvin et al. 2019 (section 4); `mixed` takes for each finding the one that they
  found best.
  """
  by_finding = np.array([float(name in _MIXED_POSITIVE) for name in CHEXPERT_14])
  uncertain_as = {
      "mixed": by_finding,
      "ones": np.ones_like(by_finding),
      "zeros": np.zeros_like(by_finding),
      "ignore": np.full_like(by_finding, np.nan),
  }[policy]
  return np.where(labels == UNCERTAIN, uncertain_as, labels == POSITIVE).astype(np.float32)


def with_both_kinds(
    findings: Iterable[str], targets: Iterable[np.ndarray], least: int = 1
) -> list[str]:
  """The findings of which each of `targets`, (N, 14), has `least` positives and negatives."""
  tables = list(targets)
  return [
      name
      for name in findings
      if all(np.sum(table[:, INDEX[name]] == kind) >= least for table in tables for kind in (0, 1))
  ]
