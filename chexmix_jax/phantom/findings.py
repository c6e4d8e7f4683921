"""What a generated study shows: findings with side, zone and severity, drawn by lot."""

import dataclasses
from collections.abc import Collection

import numpy as np

SIDES = ("left", "right")
ZONES = ("upper", "mid", "lower")
SEVERITIES = ("small", "moderate", "large")

# Kind -> name in the CheXpert scheme.
KINDS = {
    "cardiomegaly": "Cardiomegaly",
    "mediastinum": "Enlarged Cardiomediastinum",
    "opacity": "Lung Opacity",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "nodule": "Lung Lesion",
    "edema": "Edema",
    "atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "effusion": "Pleural Effusion",
    "thickening": "Pleural Other",
    "fracture": "Fracture",
    "pacemaker": "Support Devices",
    "central line": "Support Devices",
    "endotracheal tube": "Support Devices",
}
DEVICES = ("pacemaker", "central line", "endotracheal tube")
SIDED = (
    "opacity", "consolidation", "pneumonia", "nodule", "atelectasis", "pneumothorax", "effusion",
    "thickening", "fracture",
)  # fmt: skip
ZONED = ("opacity", "consolidation", "pneumonia", "nodule")
GRADED = ("cardiomegaly", "edema", "pneumothorax", "effusion")
HEDGEABLE = ("opacity", "consolidation", "pneumonia", "nodule", "atelectasis", "effusion", "edema")

# Relative frequencies of what comes and goes between the studies of a patient.
_ACUTE = {
    "effusion": 0.22, "consolidation": 0.18, "atelectasis": 0.18, "edema": 0.17,
    "pneumothorax": 0.17, "nodule": 0.12, "opacity": 0.08, "pneumonia": 0.05, "mediastinum": 0.04,
    "fracture": 0.02,
}  # fmt: skip
_NO_ACUTE = 0.25
_ACUTE_COUNTS = (0.50, 0.35, 0.15)  # Of one, two and three acute findings, where there are any.
_CHRONIC = {"cardiomegaly": 0.24, "thickening": 0.02}
_DEVICE = 0.20
_HEDGED = 0.10


@dataclasses.dataclass(frozen=True)
class Finding:
  """One finding. Side, zone and severity are "" where the kind has none.

  Attributes:
    kind: a key of KINDS.
    side: of the patient; the patient's left is the picture's right.
    severity: small, moderate or large.
    hedged: drawn faintly and reported as uncertain.
  """

  kind: str
  side: str = ""
  zone: str = ""
  severity: str = ""
  hedged: bool = False

  @property
  def label(self) -> str:
    """Name in the CheXpert scheme."""
    return KINDS[self.kind]


def draw_chronic(
    rng: np.random.Generator, kinds: Collection[str] = tuple(KINDS)
) -> tuple[Finding, ...]:
  """The findings that all studies of a patient share, of these kinds only."""
  chances = {kind: p for kind, p in _CHRONIC.items() if kind in kinds}
  found = [_specify(kind, rng) for kind, p in chances.items() if rng.random() < p]
  devices = [kind for kind in DEVICES if kind in kinds]
  if devices and rng.random() < _DEVICE:
    found.append(Finding(str(rng.choice(devices))))
  return tuple(found)


def draw_acute(
    rng: np.random.Generator, kinds: Collection[str] = tuple(KINDS)
) -> tuple[Finding, ...]:
  """The findings of one study; at most one of a kind, and none that hides another.

  Fewer `kinds` are each more frequent: as many studies as ever have a finding.
  """
  frequencies = {kind: weight for kind, weight in _ACUTE.items() if kind in kinds}
  if not frequencies or rng.random() < _NO_ACUTE:
    return ()
  count = min(1 + rng.choice(3, p=_ACUTE_COUNTS), len(frequencies))
  weights = np.array(list(frequencies.values()))
  drawn = rng.choice(list(frequencies), size=count, replace=False, p=weights / weights.sum())
  found: list[Finding] = []
  for kind in drawn:
    finding = _specify(str(kind), rng)
    crowded = {f.side for f in found if f.kind in ("effusion", "pneumothorax")}
    if finding.side in crowded:
      finding = dataclasses.replace(finding, side=SIDES[finding.side == "left"])
    found.append(finding)
  return tuple(found)


def _specify(kind: str, rng: np.random.Generator) -> Finding:
  return Finding(
      kind,
      side=str(rng.choice(SIDES)) if kind in SIDED else "",
      zone=str(rng.choice(ZONES)) if kind in ZONED else "",
      severity=str(rng.choice(SEVERITIES)) if kind in GRADED else "",
      hedged=bool(kind in HEDGEABLE and rng.random() < _HEDGED),
  )
