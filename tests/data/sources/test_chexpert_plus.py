import csv
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data.sources import chexpert_plus
from chexmix_jax.errors import UserError
from chexmix_jax.labels import CHEXPERT_14

_COLUMNS = (
    "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id",
    "patient_report_date_order", "report", "section_clinical_history", "section_history",
    "section_findings", "section_impression", "age", "split",
)  # fmt: skip
_WHOLE = """NARRATIVE:
CHEST: 5/1/2009

CLINICAL HISTORY: Old yak.

FINDINGS: Whole yak.

IMPRESSION:
1.  One yak.

END OF IMPRESSION:
ACCESSION NUMBER:
7"""


def _row(patient, study, view, split="train", order="", **cells):
  path = f"{split}/patient{patient}/study{study}/view1_{view}.jpg"
  known = {
      "path_to_image": path, "frontal_lateral": view.capitalize(), "split": split,
      "deid_patient_id": f"patient{patient}", "patient_report_date_order": order,
  }  # fmt: skip
  return known | cells


_ROWS = (
    _row("42142", 5, "lateral", order="2", section_impression="\nNo zebra.\n", report=_WHOLE),
    _row("42142", 5, "frontal", order="2", section_impression="No zebra on 1/2.", report=_WHOLE),
    _row(
        "42142", 9, "frontal", order="1", section_history="Cough.", section_findings="A zebra.",
        section_clinical_history="Zebra?", section_impression="Zebra.",
    ),
    _row("42143", 1, "frontal", section_history="Fall.", report=_WHOLE),
    _row("64541", 1, "frontal", "valid", "1", section_findings="Zebra."),
)  # fmt: skip


def _write(folder, rows, columns=_COLUMNS, encoding="utf-8"):
  path = folder / "df_chexpert_plus_240401.csv"
  with open(path, "w", newline="", encoding=encoding) as file:
    writer = csv.DictWriter(file, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)


def _write_labels(folder, section, value, lines=()):
  (folder / "chexbert_labels").mkdir(exist_ok=True)
  labels = dict.fromkeys(CHEXPERT_14) | {"Edema": value}
  whole = [json.dumps({"path_to_image": row["path_to_image"], **labels}) for row in _ROWS]
  path = folder / "chexbert_labels" / f"{section}_fixed.json"
  path.write_text("\n".join([*whole, *lines]) + "\n")


@pytest.fixture
def folder(tmp_path):
  """Three patients' four studies, as the release unpacks: images are .png under PNG."""
  _write(tmp_path, _ROWS)
  path = tmp_path / "PNG" / "train" / "patient42142" / "study5" / "view1_frontal.png"
  path.parent.mkdir(parents=True)
  Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
  return tmp_path


def test_studies_with_all_their_images(folder):
  found = chexpert_plus.studies(folder, folder)
  assert (found.refused, found.num_rows) == ((), 5)
  assert [(s.study_id, s.patient_id, s.split) for s in found.studies] == [
      ("patient42142/study5", "patient42142", "train"),
      ("patient42142/study9", "patient42142", "train"),
      ("patient42143/study1", "patient42143", "train"),
      ("patient64541/study1", "patient64541", "val"),
  ]
  first = pickle.loads(pickle.dumps(found.studies[0]))
  assert [p.view for p in first.pictures] == ["frontal", "lateral"]
  assert first.pictures[0].read(8).max() > 250
  assert first.labels is None
  # The order is the set's own, not that of the folders' numbers.
  assert first.prior() == found.studies[1].report() and found.studies[1].prior is None


def test_sections_are_the_tables_or_the_reports(folder):
  found = [study.report() for study in chexpert_plus.studies(folder, folder).studies]
  assert [(s.indication, s.findings, s.impression) for s in found] == [
      ("", "", "No zebra."),
      ("Zebra?", "A zebra.", "Zebra."),
      ("Fall.", "Whole yak.", "1.  One yak."),
      ("", "Zebra.", ""),
  ]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_images_end_as_on_disk(folder, suffix):
  root = folder / "PNG"
  for path in root.rglob("view1_frontal.png"):
    path.rename(path.with_suffix(suffix))
  found = chexpert_plus.studies(folder, root).studies
  assert {p.file[-4:] for study in found for p in study.pictures} == {suffix}
  found = chexpert_plus.studies(folder, folder / "nowhere").studies
  assert found[0].pictures[0].file.endswith("study5/view1_frontal.png")


def test_labels_are_of_the_first_section_that_is_not_empty(folder):
  for section, value in (("impression", 0.0), ("findings", 1.0), ("report", -1.0)):
    _write_labels(folder, section, value)
  found = chexpert_plus.studies(folder, folder)
  assert [s.labels[CHEXPERT_14.index("Edema")] for s in found.studies] == [0, 1, -1, 1]
  assert {s.labels[0] for s in found.studies} == {-2}
  assert len(found.description) == 5


def test_bad_lines_of_labels_are_refused(folder):
  bad = ["{", '{"path_to_image": "other.jpg", "Edema": "Zebra"}', '{"Edema": 1.0}', ""]
  again = json.dumps({"path_to_image": _ROWS[0]["path_to_image"]})
  _write_labels(folder, "findings", 1.0, [*bad, again])
  found = chexpert_plus.studies(folder, folder)
  kinds = ["encoding", "label", "no path_to_image", "duplicate id"]
  assert [refusal.kind for refusal in found.refused] == kinds
  for refusal, row in zip(found.refused, (6, 7, 8, 10), strict=True):
    assert f"findings_fixed.json row {row} " in refusal.reason
    assert "patient" not in refusal.reason and "Zebra" not in refusal.reason
  assert (len(found.studies), found.num_rows) == (4, 9)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"section_findings": "Ñandú."}, "encoding"),
        ({"path_to_image": " "}, "no path_to_image"),
        ({"deid_patient_id": ""}, "no deid_patient_id"),
        ({"split": "Zebra"}, "no split"),
        ({"path_to_image": "valid/patient64541/view1_frontal.jpg"}, "no study"),
        ({"path_to_image": "../../patient64541/study1/view1_frontal.jpg"}, "path outside"),
        ({"path_to_image": _ROWS[3]["path_to_image"]}, "study of two patients or splits"),
        (_ROWS[3], "duplicate picture"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(folder, change, kind):
  _write(folder, [*_ROWS[:4], _ROWS[4] | change], encoding="latin-1")
  found = chexpert_plus.studies(folder, folder)
  assert [(r.kind, r.level) for r in found.refused] == [(kind, "row")]
  assert (len(found.studies), found.num_rows) == (3, 5)
  reason = found.refused[0].reason
  assert f"{folder / 'df_chexpert_plus_240401.csv'} row 6" in reason
  assert not any(secret in reason for secret in ("64541", "42143", "Zebra", "yak"))


def test_too_few_cells_a_missing_column_and_a_missing_table(folder):
  table = folder / "df_chexpert_plus_240401.csv"
  table.write_text(table.read_text() + "train/patient7/study1/view1_frontal.jpg,,Frontal\n")
  assert [r.kind for r in chexpert_plus.studies(folder, folder).refused] == ["too few cells"]
  _write(folder, _ROWS, [name for name in _COLUMNS if name != "section_findings"])
  with pytest.raises(UserError, match=r"240401\.csv has no column 'section_findings'"):
    chexpert_plus.studies(folder, folder)
  table.unlink()
  with pytest.raises(UserError, match=r"has no df_chexpert_plus_\*\.csv"):
    chexpert_plus.studies(folder, folder)
