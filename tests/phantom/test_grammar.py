import re

import numpy as np
import pytest

from chexmix_jax import labels as labels_lib
from chexmix_jax import phantom
from chexmix_jax.labeler import label_report
from chexmix_jax.phantom import findings as findings_lib
from chexmix_jax.phantom import grammar
from chexmix_jax.phantom.findings import Finding


def _draw(seed: int) -> tuple[Finding, ...]:
  rng = np.random.default_rng(seed)
  return findings_lib.draw_chronic(rng) + findings_lib.draw_acute(rng)


def _write(findings: tuple[Finding, ...], seed: int) -> str:
  return grammar.write_report(findings, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[tuple[Finding, ...], str]]:
  found = [_draw(seed) for seed in range(2000)]
  return [(findings, _write(findings, seed)) for seed, findings in enumerate(found)]


def test_reports_are_many_and_short_and_of_few_words(drawn):
  reports = [report for _, report in drawn]
  assert len(set(reports)) > 1000
  counts = np.array([len(report.split()) for report in reports])
  assert counts.min() >= 12 and counts.max() <= 45 and 19 <= counts.mean() <= 26
  assert len({word for report in reports for word in re.findall(r"\w+", report.lower())}) < 130


def test_normal_reports_vary_too(drawn):
  normal = [report for found, report in drawn if not found]
  assert len(set(normal)) > 0.7 * len(normal)


def test_every_fact_of_a_finding_is_said():
  degrees = dict.fromkeys(("cardiomegaly", "edema"), ("mild", "moderate", "severe"))
  for kind in findings_lib.KINDS:
    for seed in range(60):
      finding = findings_lib._specify(kind, np.random.default_rng(seed))
      report = _write((finding,), seed)
      sentence = report.split(".")[0].lower()
      assert finding.side in sentence
      assert finding.zone in sentence
      if finding.severity:
        words = degrees.get(kind, findings_lib.SEVERITIES)
        assert words[findings_lib.SEVERITIES.index(finding.severity)] in sentence
      doubts = re.search("possible|may|cannot be excluded", sentence)
      assert (doubts is not None) == finding.hedged, sentence


def test_findings_come_first_in_the_order_of_kinds():
  nodule = Finding("nodule", side="left", zone="upper")
  effusion = Finding("effusion", side="right", severity="small")
  heart = Finding("cardiomegaly", severity="large")
  for seed in range(20):
    report = _write((nodule, effusion, heart), seed)
    assert report == _write((heart, nodule, effusion), seed)
    first, second, third = report.lower().split(".")[:3]
    assert "sever" in first and "nodule" in second and "effusion" in third


def test_what_is_there_is_never_denied(drawn):
  for found, report in drawn:
    labels = phantom.labels_from_findings(found)
    got = label_report(report)
    # A positive mention would win over a denial in the labels: ask the denials alone.
    denials = [s for s in report.split(". ") if re.search("^No|no |clear|normal|intact", s)]
    denied = label_report(". ".join(denials)) == labels_lib.NEGATIVE
    there = np.isin(labels, (labels_lib.POSITIVE, labels_lib.UNCERTAIN))
    assert not (denied & there).any(), report
    np.testing.assert_array_equal(got[there], labels[there], err_msg=report)


@pytest.mark.parametrize(
    "names",
    [
        ("No Finding",), ("Infiltration",), ("Mass", "Nodule"), ("Effusion", "Atelectasis"),
        ("Cardiomegaly", "Edema", "Pneumothorax"), ("Pneumonia", "Consolidation", "Infiltration"),
        ("Pleural_Thickening", "Emphysema"), ("Hernia",),
    ],
)  # fmt: skip
def test_a_report_from_labels_says_those_labels(names):
  labels = labels_lib.from_nih14(names)
  for seed in range(25):
    report = grammar.report_from_labels(labels, np.random.default_rng(seed))
    got = label_report(report)
    positive = labels == labels_lib.POSITIVE
    if names == ("Hernia",):
      positive = got == labels_lib.POSITIVE
      assert positive.tolist() == [True] + [False] * 13
    np.testing.assert_array_equal(got == labels_lib.POSITIVE, positive, err_msg=report)
    assert not re.search(r"\b(left|right|zone|lobe|small|mild|large|sever)", report), report
    # What NIH ChestX-ray14 does not annotate goes unmentioned.
    assert got[labels_lib.INDEX["Fracture"]] == labels_lib.UNKNOWN
    assert got[labels_lib.INDEX["Support Devices"]] == labels_lib.UNKNOWN


def test_any_labels_make_a_report_of_the_same_labels():
  rng = np.random.default_rng(0)
  for _ in range(500):
    labels = rng.choice([1, 0, -1, -2], 14, p=[0.15, 0.4, 0.1, 0.35]).astype(np.int8)
    labels[0] = labels_lib.UNKNOWN
    implied = [labels[labels_lib.INDEX[name]] for name in labels_lib.OPACITIES]
    for value in (labels_lib.UNCERTAIN, labels_lib.POSITIVE):
      if value in implied:
        labels[labels_lib.INDEX["Lung Opacity"]] = value
    report = grammar.report_from_labels(labels, rng)
    assert report
    got = label_report(report)[1:]
    said = np.isin(labels[1:], (labels_lib.POSITIVE, labels_lib.UNCERTAIN))
    np.testing.assert_array_equal(got[said], labels[1:][said], err_msg=report)
    unknown = labels[1:] == labels_lib.UNKNOWN
    assert (got[unknown] == labels_lib.UNKNOWN).all(), report


def test_the_same_random_numbers_write_the_same_report():
  finding = (Finding("effusion", side="left", severity="small"),)
  assert _write(finding, 3) == _write(finding, 3)
  assert len({_write(finding, seed) for seed in range(50)}) > 40
