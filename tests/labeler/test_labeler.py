import csv
import itertools
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from chexmix_jax import labels as labels_lib
from chexmix_jax import phantom
from chexmix_jax.labeler import Mention, find_mentions, label_report
from chexmix_jax.labels import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN

_SHORT = {
    "ECM": "Enlarged Cardiomediastinum", "CM": "Cardiomegaly", "LO": "Lung Opacity",
    "LL": "Lung Lesion", "ED": "Edema", "CO": "Consolidation", "PN": "Pneumonia",
    "AT": "Atelectasis", "PTX": "Pneumothorax", "PE": "Pleural Effusion", "PO": "Pleural Other",
    "FX": "Fracture", "SD": "Support Devices",
}  # fmt: skip
_SIGNS = {"+": POSITIVE, "-": NEGATIVE, "?": UNCERTAIN}

# A report and all that it says: "+" is there, "?" uncertain, "-" not there; the rest is unknown.
_CASES = (
    # Negation.
    ("No pneumothorax or pleural effusion.", "-PTX -PE"),
    ("No evidence of focal consolidation, pneumothorax, or pleural effusion.", "-CO -PTX -PE"),
    ("There is no focal air space opacity to suggest a pneumonia.", "-LO -PN"),
    ("The lungs are free of focal airspace disease.", "-LO"),
    ("Negative for pneumothorax, pleural effusion or acute fracture.", "-PTX -PE -FX"),
    ("The previously seen left pneumothorax has resolved.", "-PTX"),
    ("Pleural effusions are no longer seen.", "-PE"),
    ("Interval removal of the endotracheal tube.", "-SD"),
    ("No findings suspicious for pneumonia.", "-PN"),
    ("No new consolidation.", "-CO"),
    ("Neither effusion nor pneumothorax is seen.", "-PE -PTX"),
    # What a negation does not reach.
    ("No pneumothorax, small left pleural effusion.", "-PTX +PE"),
    ("No definite pleural effusion seen, left basilar atelectasis.", "-PE +AT +LO"),
    ("No pneumothorax but there is a moderate effusion.", "-PTX +PE"),
    ("No significant change in the right pleural effusion or pneumothorax.", "+PE +PTX"),
    ("Small right pleural effusion, unchanged.", "+PE"),
    ("Right basilar consolidation without pleural effusion.", "+CO +LO -PE"),
    ("The pneumothorax is not changed.", "+PTX"),
    ("Near complete resolution of the pneumothorax.", "+PTX"),
    ("Aside from minimal atelectasis, the lungs are clear.", "+AT +LO -CO"),
    # Doubt.
    ("Small left pleural effusion cannot be excluded.", "?PE"),
    ("Left basilar opacity, which may represent atelectasis or pneumonia.", "+LO ?AT ?PN"),
    ("Right lower lobe pneumonia is suspected.", "?PN ?LO"),
    ("Streaky opacities in the left base, atelectasis versus scar.", "+LO ?AT"),
    ("No pneumothorax, possible trace left effusion.", "-PTX ?PE"),
    ("Findings concerning for edema.", "?ED ?LO"),
    ("Opacity compatible with pneumonia.", "+LO +PN"),
    ("Blunting of the left costophrenic angle.", "?PE"),
    # Size of the heart and the mediastinum.
    ("The heart is enlarged.", "+CM"),
    ("The heart may be enlarged.", "?CM"),
    ("Heart size is normal.", "-CM"),
    ("The heart is not enlarged.", "-CM"),
    ("Heart size is at the upper limits of normal.", "-CM"),
    ("Borderline heart size.", "?CM"),
    ("No effusion, the heart is enlarged.", "-PE +CM"),
    ("The cardiomediastinal silhouette is within normal limits.", "-CM -ECM"),
    ("The heart and mediastinum are normal.", "-CM -ECM"),
    ("Stable cardiomediastinal silhouette with normal heart size.", "-CM"),
    ("Heart size is enlarged and the mediastinal contours are normal.", "+CM -ECM"),
    ("Low volumes accentuate the cardiac silhouette, which is mildly enlarged.", "+CM"),
    ("Widened mediastinum.", "+ECM"),
    ("Mediastinal widening cannot be excluded.", "?ECM"),
    ("No mediastinal widening.", "-ECM"),
    ("Moderate cardiomegaly, large right effusion.", "+CM +PE"),
    ("Large hiatal hernia, heart size normal.", "-CM"),
    # The rest.
    ("Clear lungs. The bones are intact.", "-LO -CO -FX"),
    ("Pleural spaces are clear.", "-PE"),
    ("Left chest wall pacemaker with leads in the right heart.", "+SD"),
    ("Sternal wires and surgical clips. Right PICC line tip in the SVC.", "+SD"),
    ("Right apical pleural thickening.", "+PO"),
    ("Old healed left rib fractures.", "+FX"),
    ("8 mm nodule in the right upper lobe.", "+LL +LO"),
    ("Left hydropneumothorax.", "+PTX +PE"),
    ("Residuals of prior granulomatous infection.", ""),
    ("Moderate pericardial effusion.", ""),
    ("Pulmonary vascular congestion.", "?ED ?LO"),
    ("Small effusion seen previously. No effusion.", "+PE"),
)  # fmt: skip


@pytest.mark.parametrize(("report", "expected"), _CASES)
def test_reads_sentences_as_radiologists_mean_them(report, expected):
  want = {_SHORT[word[1:]]: _SIGNS[word[0]] for word in expected.split()}
  got = dict(zip(labels_lib.CHEXPERT_14, label_report(report).tolist(), strict=True))
  no_finding = got.pop("No Finding")
  assert {name: value for name, value in got.items() if value != UNKNOWN} == want
  is_normal = all(v == NEGATIVE or name == "Support Devices" for name, v in want.items())
  assert no_finding == (POSITIVE if is_normal else UNKNOWN)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            "Right lower lobe consolidation with small left pleural effusion.",
            [("Consolidation", POSITIVE, "right"), ("Pleural Effusion", POSITIVE, "left")],
        ),
        (
            "Nodule in the left upper lobe and no pneumothorax on the right.",
            [("Lung Lesion", POSITIVE, "left"), ("Pneumothorax", NEGATIVE, "right")],
        ),
        ("Bibasilar atelectasis.", [("Atelectasis", POSITIVE, "bilateral")]),
        ("Effusions, left greater than right.", [("Pleural Effusion", POSITIVE, "bilateral")]),
        (
            "Left effusion and atelectasis.",
            [("Pleural Effusion", POSITIVE, "left"), ("Atelectasis", POSITIVE, "left")],
        ),
        (
            "The heart is enlarged. Edema.",
            [("Cardiomegaly", POSITIVE, ""), ("Edema", POSITIVE, "")],
        ),
    ],
)
def test_mentions_have_their_side(report, expected):
  assert find_mentions(report) == tuple(Mention(*fields) for fields in expected)


def test_agrees_with_the_labels_and_sides_of_generated_studies():
  said = (POSITIVE, UNCERTAIN)
  for seed, index in itertools.product((0, 1), range(200)):
    study = phantom.make_study(seed, index, 16)
    got = label_report(study.report)
    matters = np.isin(study.labels, said) | np.isin(got, said)
    np.testing.assert_array_equal(got[matters], study.labels[matters], err_msg=study.report)
    mentions = find_mentions(study.report)
    for finding in study.findings:
      value = UNCERTAIN if finding.hedged else POSITIVE
      assert Mention(finding.label, value, finding.side) in mentions, study.report


def test_never_fails_on_garbled_text():
  rng = np.random.default_rng(0)
  text = (
      "no left right effusion pneumothorax cannot be excluded may represent heart normal enlarged"
      " and or , . the is without lungs clear of mediastinum ; resolved vs. XXXX 4.5 ⁇ é ( ) / -"
  )
  words = text.split()
  for _ in range(2000):
    count = int(rng.integers(0, 30))
    separator = " " if rng.random() < 0.7 else ""
    report = separator.join(rng.choice(words, count))
    labels = label_report(report)
    assert labels.dtype == np.int8 and labels.shape == (14,)
    assert set(labels.tolist()) <= {POSITIVE, NEGATIVE, UNCERTAIN, UNKNOWN}
  assert find_mentions("") == ()
  assert label_report("\n\t .. ").tolist() == [POSITIVE] + [UNKNOWN] * 13


def test_imports_nothing_heavy():
  # It runs in worker processes, one start-up each.
  code = "import sys, chexmix_jax.labeler; print({'jax', 'tensorflow_datasets'} & {*sys.modules})"
  root = pathlib.Path(__file__).resolve().parents[1]
  run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
  assert run.stdout.strip() == "set()", run.stderr


def test_is_fast_enough_for_a_whole_data_set():
  reports = [phantom.make_study(7, index, 16).report for index in range(200)]
  start = time.process_time()
  for report in reports:
    label_report(report)
  # More than 2,000 a second where nothing else runs; a tenth of it is a fault, not a busy machine.
  assert len(reports) / (time.process_time() - start) > 200


# Precision and recall of POSITIVE against human annotation. negbio_labels.csv repeats the MeSH
# codes that people gave the reports; they code "probable X" and "X versus Y" as X, where this
# labeler says UNCERTAIN, and code "nodular opacity" as a round opacity, not as a nodule.
_OPENI = {
    "Atelectasis": (("Atelectasis",), 0.94, 0.70),
    "Cardiomegaly": (("Cardiomegaly",), 0.94, 0.84),
    "Pleural Effusion": (("Effusion",), 0.95, 0.79),
    "Lung Lesion": (("Mass", "Nodule"), 0.63, 0.90),
    "Pneumonia": (("Pneumonia",), 0.66, 0.79),
    "Pneumothorax": (("Pneumothorax",), 0.86, 0.80),
    "Consolidation": (("Consolidation",), 0.90, 0.90),
    "Edema": (("Edema",), 0.79, 0.86),
    "Pleural Other": (("Pleural_Thickening",), 0.74, 0.48),
}


def _read_csv(path: pathlib.Path) -> dict[str, dict[str, str]]:
  with path.open(encoding="utf-8", newline="") as file:
    return {row["uid"]: row for row in csv.DictReader(file)}


def test_agrees_with_people_on_real_reports(shared):
  reports = _read_csv(shared / "data" / "openi" / "indiana_reports.csv")
  truth = _read_csv(shared / "data" / "openi" / "negbio_labels.csv")
  uids = sorted(set(truth) & set(reports))
  assert len(uids) > 3000
  labels = np.stack(
      [label_report(f"{reports[u]['findings']} {reports[u]['impression']}") for u in uids]
  )
  counts = []
  for name, (columns, precision, recall) in _OPENI.items():
    is_there = np.array([any(truth[u][column] == "1" for column in columns) for u in uids])
    found = labels[:, labels_lib.INDEX[name]] == POSITIVE
    hits, all_found, all_there = (found & is_there).sum(), found.sum(), is_there.sum()
    assert hits / all_found >= precision, f"{name}: precision {hits / all_found:.3f}"
    assert hits / all_there >= recall, f"{name}: recall {hits / all_there:.3f}"
    counts.append((hits, all_found, all_there))
  hits, all_found, all_there = np.sum(counts, axis=0)
  assert 2 * hits / (all_found + all_there) >= 0.83
  # Studies that people call normal have no finding here; the converse fails for scars and the like.
  is_normal = np.array([truth[u]["normal"] == "1" for u in uids])
  assert (labels[is_normal, labels_lib.INDEX["No Finding"]] == POSITIVE).mean() >= 0.99
