"""Generated chest radiographs with reports and labels: studies by number, deterministic by seed."""

import dataclasses
from collections.abc import Collection

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.phantom import grammar
from chexmix_jax.phantom.anatomy import draw_anatomy, draw_exposure
from chexmix_jax.phantom.findings import KINDS, Finding, draw_acute, draw_chronic
from chexmix_jax.phantom.render import render

STUDIES_A_PATIENT = 2
# Of ten patients in a row, eight train, one validates and one tests.
_SPLITS = ("train", "test", "train", "train", "train", "train", "val", "train", "train", "train")


@dataclasses.dataclass(frozen=True)
class PhantomStudy:
  """One generated study.

  Attributes:
    image: uint8 (size, size), grey.
    report: findings in words.
    labels: int8 (14,), see chexmix_jax.labels; what is not there is negative.
    findings: what was drawn and reported.
  """

  image: np.ndarray
  report: str
  labels: np.ndarray
  findings: tuple[Finding, ...]


def identify(seed: int, index: int) -> tuple[str, str, str]:
  """Study id, patient id and split of a study; a patient's studies are all in one split."""
  patient = index // STUDIES_A_PATIENT
  split = _SPLITS[patient % len(_SPLITS)]
  return f"phantom{seed}-{index:06d}", f"phantom{seed}-p{patient:06d}", split


def describe(
    seed: int, index: int, kinds: Collection[str] = tuple(KINDS)
) -> tuple[tuple[Finding, ...], str, np.ndarray]:
  """Findings, report and labels of study number `index` of a seed, without its picture.

  `kinds` are the findings that may be drawn.
  """
  findings = _draw_findings(seed, index, kinds)
  report = grammar.write_report(findings, _rngs(seed, index)[1])
  return findings, report, labels_from_findings(findings)


def make_study(
    seed: int, index: int, size: int, kinds: Collection[str] = tuple(KINDS)
) -> PhantomStudy:
  """Study number `index` of a seed, its picture `size` pixels a side.

  Studies of a patient share the anatomy and the chronic findings. Neither report nor labels depend
  on `size`. `kinds` are the findings that may be drawn.
  """
  findings, report, labels = describe(seed, index, kinds)
  picture_rng = _rngs(seed, index)[2]
  anatomy = draw_anatomy(_patient_rng(seed, index))
  image = render(anatomy, draw_exposure(picture_rng), findings, size, picture_rng)
  return PhantomStudy(image, report, labels, findings)


def _patient_rng(seed: int, index: int) -> np.random.Generator:
  return np.random.default_rng([seed, index // STUDIES_A_PATIENT, 0])


def _rngs(seed: int, index: int) -> list[np.random.Generator]:
  """For the findings, the report and the picture of a study."""
  return np.random.default_rng([seed, index, 1]).spawn(3)


def _draw_findings(seed: int, index: int, kinds: Collection[str]) -> tuple[Finding, ...]:
  rng = _patient_rng(seed, index)
  draw_anatomy(rng)  # The chronic findings follow it in the patient's stream.
  return draw_chronic(rng, kinds) + draw_acute(_rngs(seed, index)[0], kinds)


def labels_from_findings(findings: tuple[Finding, ...]) -> np.ndarray:
  """int8 (14,): POSITIVE, UNCERTAIN where every such finding is hedged, else NEGATIVE.

  A finding in the lung is an opacity too (the CheXpert label hierarchy); No Finding is positive
  where nothing but support devices is there.
  """
  labels = np.full(len(labels_lib.CHEXPERT_14), labels_lib.NEGATIVE, np.int8)

  def mark(name: str, hedged: bool) -> None:
    index = labels_lib.INDEX[name]
    if labels[index] != labels_lib.POSITIVE:
      labels[index] = labels_lib.UNCERTAIN if hedged else labels_lib.POSITIVE

  for finding in findings:
    mark(finding.label, finding.hedged)
    if finding.label in labels_lib.OPACITIES:
      mark("Lung Opacity", finding.hedged)
  if all(finding.label == "Support Devices" for finding in findings):
    labels[labels_lib.INDEX["No Finding"]] = labels_lib.POSITIVE
  return labels
