import dataclasses
import hashlib

import numpy as np
import pytest

from chexmix_jax import labels as labels_lib
from chexmix_jax import phantom
from chexmix_jax.labeler import label_report
from chexmix_jax.phantom import findings as findings_lib
from chexmix_jax.phantom.anatomy import draw_anatomy, draw_exposure
from chexmix_jax.phantom.findings import Finding
from chexmix_jax.phantom.render import render


def test_without_a_limit_a_study_is_what_it_always_was():
  """A digest of 300 studies of the version before findings could be limited."""
  digest = hashlib.sha256()
  for index in range(300):
    found, report, labels = phantom.describe(5, index)
    fields = [dataclasses.astuple(finding) for finding in found]
    digest.update(repr((report, labels.tolist(), fields)).encode())
  assert digest.hexdigest()[:16] == "6faceb6014dd8d59"


def test_only_the_named_findings_appear():
  kinds = ("cardiomegaly", "pneumothorax", "pneumonia", "central line")
  names = {findings_lib.KINDS[kind] for kind in kinds} | {"No Finding", "Lung Opacity"}
  others = [i for i, name in enumerate(labels_lib.CHEXPERT_14) if name not in names]
  seen, empty = set(), []
  for index in range(200):
    found, report, labels = phantom.describe(3, index, kinds)
    seen |= {finding.kind for finding in found}
    assert not labels[others].any() and not label_report(report)[others].clip(0).any()
    if not found:
      empty.append(index)
  assert seen == set(kinds) and 10 < len(empty) < 60
  # The picture shows them, and differs from that of nothing where there are some.
  for index in (empty[0], min({*range(200)} - {*empty})):
    plain, limited = (phantom.make_study(3, index, 32, k) for k in ((), kinds))
    assert not plain.findings and np.array_equal(plain.image, limited.image) == (index in empty)
  lone = {phantom.describe(3, index, ("edema",))[0] for index in range(40)}
  assert {len(found) for found in lone} == {0, 1}


def _labels(**values: int) -> list[int]:
  names = {name.replace(" ", "_"): name for name in labels_lib.CHEXPERT_14}
  labels = [0] * 14
  for key, value in values.items():
    labels[labels_lib.INDEX[names[key]]] = value
  return labels


def test_a_study_is_fixed_by_seed_and_number():
  one, again = (phantom.make_study(3, 17, 48) for _ in range(2))
  assert one.report == again.report and one.findings == again.findings
  np.testing.assert_array_equal(one.image, again.image)
  np.testing.assert_array_equal(one.labels, again.labels)
  assert one.image.dtype == np.uint8 and one.image.shape == (48, 48)
  assert one.labels.dtype == np.int8 and one.labels.shape == (14,)
  other_seed, other_number = phantom.make_study(4, 17, 48), phantom.make_study(3, 18, 48)
  assert (one.image != other_seed.image).mean() > 0.5
  assert (one.image != other_number.image).mean() > 0.5
  assert len({one.report, other_seed.report, other_number.report}) == 3


def test_studies_of_a_patient_share_split_and_chronic_findings():
  chronic = {*findings_lib._CHRONIC, *findings_lib.DEVICES}
  by_patient: dict[str, list[int]] = {}
  split_of: dict[str, str] = {}
  for index in range(200):
    study_id, patient_id, split = phantom.identify(0, index)
    assert study_id == f"phantom0-{index:06d}"
    assert split_of.setdefault(patient_id, split) == split
    by_patient.setdefault(patient_id, []).append(index)
  assert {len(indices) for indices in by_patient.values()} == {phantom.STUDIES_A_PATIENT}
  counts = {name: list(split_of.values()).count(name) for name in ("train", "val", "test")}
  assert counts == {"train": 80, "val": 10, "test": 10}
  reports_differ = 0
  for indices in list(by_patient.values())[:40]:
    studies = [phantom.make_study(0, index, 16) for index in indices]
    first, second = ({f for f in s.findings if f.kind in chronic} for s in studies)
    assert first == second
    reports_differ += studies[0].report != studies[1].report
  assert reports_differ >= 38


def test_labels_follow_from_findings():
  effusion = Finding("effusion", side="left", severity="small")
  nodule = Finding("nodule", side="left", zone="upper")
  faint = Finding("pneumonia", side="right", zone="lower", hedged=True)
  tube = Finding("endotracheal tube")
  of = phantom.labels_from_findings
  assert of(()).tolist() == _labels(No_Finding=1)
  assert of((tube,)).tolist() == _labels(No_Finding=1, Support_Devices=1)
  assert of((effusion, tube)).tolist() == _labels(Pleural_Effusion=1, Support_Devices=1)
  assert of((faint,)).tolist() == _labels(Pneumonia=-1, Lung_Opacity=-1)
  both = _labels(Pneumonia=-1, Lung_Lesion=1, Lung_Opacity=1)
  assert of((faint, nodule)).tolist() == of((nodule, faint)).tolist() == both


def test_label_rates_leave_something_to_learn():
  studies = [phantom.make_study(1, index, 8) for index in range(600)]
  labels = np.stack([study.labels for study in studies])
  rates = dict(zip(labels_lib.CHEXPERT_14, (labels == 1).mean(0), strict=True))
  assert 0.15 < rates["No Finding"] < 0.5
  for name in labels_lib.CHEXPERT_5:
    assert 0.04 < rates[name] < 0.35, name
  assert (labels == labels_lib.UNCERTAIN).any(1).mean() > 0.03
  sides = [f.side for study in studies for f in study.findings if f.side]
  assert 0.4 < sides.count("left") / len(sides) < 0.6


def _picture(findings: tuple[Finding, ...], size: int = 96, patient: int = 0) -> np.ndarray:
  """float64 (size, size): without noise and shift, so that pictures can be compared."""
  anatomy = draw_anatomy(np.random.default_rng(patient))
  exposure = draw_exposure(np.random.default_rng(patient))
  exposure = dataclasses.replace(exposure, noise=0.0, rotation=0.0, shift=(0.0, 0.0))
  rng = np.random.default_rng(patient)
  return render(anatomy, exposure, findings, size, rng).astype(np.float64)


def _center(changes: np.ndarray) -> tuple[float, float]:
  """Row and column of the middle of a change, in fractions of the picture."""
  along = np.arange(len(changes)) / len(changes)
  row, column = changes.sum(1) @ along, changes.sum(0) @ along
  return float(row / changes.sum()), float(column / changes.sum())


def _specify(kind: str, **fields: str) -> Finding:
  given = {
      "side": "left" if kind in findings_lib.SIDED else "",
      "zone": "mid" if kind in findings_lib.ZONED else "",
      "severity": "moderate" if kind in findings_lib.GRADED else "",
  }
  return Finding(kind, **{**given, **fields})


@pytest.mark.parametrize("kind", list(findings_lib.KINDS))
def test_each_finding_shows(kind):
  for patient in range(3):
    change = np.abs(_picture((_specify(kind),), patient=patient) - _picture((), patient=patient))
    assert (change > 10).mean() > 0.002 and change.max() > 25, patient
    # And leaves most of the picture as it was.
    assert (change > 10).mean() < 0.45, patient


@pytest.mark.parametrize("kind", findings_lib.SIDED)
def test_a_finding_is_on_its_side(kind):
  # The patient's left is the picture's right.
  for side, is_right_half in (("left", True), ("right", False)):
    change = np.abs(_picture((_specify(kind, side=side),)) - _picture(()))
    assert (_center(change)[1] > 0.5) == is_right_half
    assert abs(_center(change)[1] - 0.5) > 0.08


@pytest.mark.parametrize("kind", findings_lib.ZONED)
def test_zones_lie_above_each_other(kind):
  rows = []
  for zone in findings_lib.ZONES:
    change = np.abs(_picture((_specify(kind, zone=zone),)) - _picture(()))
    rows.append(_center(change)[0])
  assert rows[0] + 0.06 < rows[1] and rows[1] + 0.06 < rows[2]


@pytest.mark.parametrize("kind", findings_lib.GRADED)
def test_more_severe_shows_more(kind):
  amounts = [
      np.abs(_picture((_specify(kind, severity=severity),)) - _picture(())).mean()
      for severity in findings_lib.SEVERITIES
  ]
  assert amounts[0] * 1.1 < amounts[1] and amounts[1] * 1.05 < amounts[2]


@pytest.mark.parametrize("kind", findings_lib.HEDGEABLE)
def test_hedged_findings_are_faint(kind):
  sure, faint = (dataclasses.replace(_specify(kind), hedged=hedged) for hedged in (False, True))
  change, faint_change = (np.abs(_picture((f,)) - _picture(())).sum() for f in (sure, faint))
  assert 0.3 * change < faint_change < 0.9 * change


def test_a_study_shows_the_same_at_any_size():
  for index in range(12):
    small, large = phantom.make_study(2, index, 32), phantom.make_study(2, index, 128)
    assert small.report == large.report and small.findings == large.findings
    np.testing.assert_array_equal(small.labels, large.labels)
    shrunk = large.image.reshape(32, 4, 32, 4).mean((1, 3))
    correlation = np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1]
    assert correlation > 0.97
    # Closer to its own picture than to any other study's.
    other = phantom.make_study(2, index + 12, 32).image
    own_error = np.abs(shrunk - small.image).mean()
    assert own_error < 0.5 * np.abs(shrunk - other).mean() and own_error < 10
