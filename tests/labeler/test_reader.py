import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from chexmix_jax import labels as labels_lib
from chexmix_jax import phantom
from chexmix_jax.labeler import find_mentions, label_report
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
    ("No pneumothorax with small left effusion.", "-PTX +PE"),
    ("Probable effusion with mild atelectasis.", "?PE +AT +LO"),
    ("This may be due to crowding, infection or edema.", "?PN ?ED ?LO"),
    ("Infection is also in the differential.", "?PN ?LO"),
    ("Heart size is upper limits of normal or mildly enlarged.", "?CM"),
    ("Edema is difficult to completely exclude.", "?ED ?LO"),
    ("Peripheral edema. Mass effect on the trachea. This leads to doubt.", ""),
    ("Collapse of a large part of the left lung.", "+AT +LO"),
    ("Small pleural air collection.", "+PTX"),
    ("Biapical capping. Interlobar thickening.", "+PO"),
    ("Heart size XXXX enlarged. XXXX effusion, ___ in size.", "+CM +PE"),
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
            [("Consolidation", "right", "lower"), ("Pleural Effusion", "left", "")],
        ),
        (
            "Nodule in the left upper lobe and no pneumothorax on the right.",
            [("Lung Lesion", "left", "upper"), ("Pneumothorax", "right", "")],
        ),
        ("Bibasilar atelectasis.", [("Atelectasis", "bilateral", "lower")]),
        ("Effusions, left greater than right.", [("Pleural Effusion", "bilateral", "")]),
        (
            "Left effusion and atelectasis.",
            [("Pleural Effusion", "left", ""), ("Atelectasis", "left", "")],
        ),
        (
            "Left lower lobe consolidation and atelectasis.",
            [("Consolidation", "left", "lower"), ("Atelectasis", "left", "lower")],
        ),
        ("The heart is enlarged. Edema.", [("Cardiomegaly", "", ""), ("Edema", "", "")]),
        ("Left apical pneumothorax.", [("Pneumothorax", "left", "upper")]),
        ("Mass in the middle lobe.", [("Lung Lesion", "right", "mid")]),
        ("Lingular opacity.", [("Lung Opacity", "left", "mid")]),
        ("Retrocardiac opacity.", [("Lung Opacity", "", "lower")]),
        ("Opacity at the right base.", [("Lung Opacity", "right", "lower")]),
        (
            "Right basilar consolidation and atelectasis with bilateral effusions.",
            [
                ("Consolidation", "right", "lower"), ("Atelectasis", "right", ""),
                ("Pleural Effusion", "bilateral", ""),
            ],
        ),
        (
            "Small left effusion and right upper lobe nodule.",
            [("Pleural Effusion", "left", ""), ("Lung Lesion", "right", "upper")],
        ),
        # Neither bones nor devices nor the limits of normal have a zone.
        ("Right upper lobe catheter.", [("Support Devices", "right", "")]),
        ("Upper limits of normal heart size.", [("Cardiomegaly", "", "")]),
    ],
)  # fmt: skip
def test_mentions_have_their_place(report, expected):
  assert [(m.finding, m.side, m.zone) for m in find_mentions(report)] == expected


@pytest.mark.parametrize(
    ("report", "doubts"),
    [
        ("Possible pneumonia.", ["possible"]),
        ("Pneumonia cannot be excluded.", ["possible"]),
        ("Probable pneumonia.", ["probable"]),
        ("Atelectasis versus scar.", ["alternative"]),
        ("Atelectasis or consolidation.", ["alternative", "alternative"]),
        ("Possible atelectasis or scar.", ["possible"]),
        ("Borderline cardiomegaly.", ["borderline"]),
        ("The heart is borderline in size.", ["borderline"]),
        ("Blunting of the right angle.", ["sign"]),
        ("Pneumonia.", [""]),
        ("No pneumonia.", [""]),
    ],
)
def test_what_is_uncertain_says_why(report, doubts):
  mentions = find_mentions(report)
  assert [mention.doubt for mention in mentions] == doubts
  assert all((mention.value == UNCERTAIN) == bool(mention.doubt) for mention in mentions)


def test_finds_every_side_and_zone_of_generated_studies():
  for index in range(300):
    findings, report, _ = phantom.describe(1, index)
    said = {(m.finding, m.value, m.side, m.zone) for m in find_mentions(report)}
    for finding in findings:
      value = UNCERTAIN if finding.hedged else POSITIVE
      # Generated atelectasis has no zone, and is written as basal where it has a side.
      zone = "lower" if finding.kind == "atelectasis" and finding.side else finding.zone
      assert (finding.label, value, finding.side, zone) in said, report


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
  root = pathlib.Path(__file__).resolve().parents[2]
  run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
  assert run.stdout.strip() == "set()", run.stderr


def test_is_fast_enough_for_a_whole_data_set():
  reports = [phantom.describe(7, index)[1] for index in range(200)]
  start = time.process_time()
  for report in reports:
    label_report(report)
  # More than 10,000 a second where nothing else runs; a tenth of it is a fault, not a busy machine.
  assert len(reports) / (time.process_time() - start) > 200
