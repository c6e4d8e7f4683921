import gzip
import pickle

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data.sources import mimic_cxr
from chexmix_jax.errors import BadRow, UserError
from chexmix_jax.labels import CHEXPERT_14

_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___-year-old with cough.

 FINDINGS:

 Zebra lungs are clear.

 IMPRESSION:  No zebra.
"""
_TABLES = {
    "split": """dicom_id,study_id,subject_id,split
lat1,50000001,10000032,train
pa1,50000001,10000032,train
ap2,50000002,10000032,train
pa3,50000003,10000032,train
pa4,50000004,11000011,validate
odd5,50000005,12000022,test
""",
    # Study 2 is at 09:05, study 1 at 21:30 of the same day.
    "metadata": """dicom_id,subject_id,study_id,ViewPosition,Rows,StudyDate,StudyTime
lat1,10000032,50000001,LL,8,21800506,213014.531
pa1,10000032,50000001,PA,8,21800506,213014.531
ap2,10000032,50000002,AP,8,21800506,90514.53100000002
pa3,10000032,50000003,PA,8,21790101,235959.0
pa4,11000011,50000004,LATERAL,8,21800506,1.0
odd5,12000022,50000005,,8,,
""",
    "chexpert": f"""subject_id,study_id,{",".join(CHEXPERT_14)}
10000032,50000001,1.0,,,,,,,0.0,,,-1.0,,,
""",
}
_SECTIONED = """study,impression,findings,last_paragraph,comparison
s50000001,No yak.,,Yaks.,None.
s50000002,,,Only a yak.,None.
"""


@pytest.fixture
def folder(tmp_path):
  """Two patients' four studies and one of a third; tables gzipped, images and reports apart."""
  for name, text in _TABLES.items():
    _write(tmp_path, name, text)
  reports = tmp_path / "mimic-cxr-reports" / "files" / "p10" / "p10000032"
  reports.mkdir(parents=True)
  for number in (1, 3):
    (reports / f"s5000000{number}.txt").write_text(_REPORT)
  (reports / "s50000002.txt").write_bytes(b"FINDINGS: zebra \xff")
  images = tmp_path / "images" / "files" / "p10" / "p10000032" / "s50000001"
  images.mkdir(parents=True)
  Image.fromarray(np.full((9, 8), 77, np.uint8)).save(images / "pa1.jpg")
  return tmp_path


def _write(folder, name, text, encoding="utf-8"):
  path = folder / f"mimic-cxr-2.0.0-{name}.csv.gz"
  path.write_bytes(gzip.compress(text.encode(encoding)))


def _open(folder):
  return mimic_cxr.studies(folder, folder / "images")


def test_studies_with_all_their_images(folder):
  found = _open(folder)
  assert (found.refused, found.num_rows) == ((), 6)
  assert [(s.study_id, s.patient_id, s.split) for s in found.studies] == [
      ("s50000001", "10000032", "train"),
      ("s50000002", "10000032", "train"),
      ("s50000003", "10000032", "train"),
      ("s50000004", "11000011", "val"),
      ("s50000005", "12000022", "test"),
  ]
  first = found.studies[0]
  assert [p.view for p in first.pictures] == ["frontal", "lateral"]
  assert first.pictures[0].file.endswith("images/files/p10/p10000032/s50000001/pa1.jpg")
  assert (pickle.loads(pickle.dumps(first)).pictures[0].read(4) == 77).all()
  assert [s.pictures[0].view for s in found.studies[3:]] == ["lateral", "unknown"]
  labels = dict(zip(CHEXPERT_14, first.labels, strict=True))
  assert labels["No Finding"] == 1 and labels["Pneumonia"] == 0
  assert labels["Pleural Effusion"] == -1 and labels["Fracture"] == -2
  assert found.studies[1].labels is None


def test_reports_are_read_late_and_in_the_order_of_time(folder):
  found = _open(folder).studies
  sections = pickle.loads(pickle.dumps(found[0])).report()
  assert (sections.findings, sections.impression) == ("Zebra lungs are clear.", "No zebra.")
  assert sections.indication == "___-year-old with cough."
  # 3, 2, 1: times are numbers without leading zeros.
  assert found[2].prior is None and found[1].prior() == found[2].report()
  assert found[0].prior is found[1].report
  for study, kind in ((found[1], "encoding"), (found[3], "missing report")):
    with pytest.raises(BadRow, match=r"split\.csv\.gz row \d: its report") as error:
      study.report()
    assert error.value.kind == kind
    assert study.patient_id not in str(error.value) and study.study_id not in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
def test_the_table_of_sections_goes_before_the_files(folder, packed):
  name, content = "mimic_cxr_sectioned.csv", _SECTIONED.encode()
  (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
  found = [s.report() for s in _open(folder).studies[:3]]
  assert [(s.findings, s.impression) for s in found] == [
      ("", "No yak."),
      ("Only a yak.", ""),
      ("Zebra lungs are clear.", "No zebra."),
  ]


def test_dicom_originals(folder):
  image = folder / "images/files/p10/p10000032/s50000001/pa1.jpg"
  image.rename(image.with_suffix(".dcm"))
  assert {p.file[-4:] for s in _open(folder).studies for p in s.pictures} == {".dcm"}


_LAST = {"split": "odd5,50000005,12000022,test", "metadata": "odd5,12000022,50000005,,8,,"}
_LAST["chexpert"] = "10000032,50000001,1.0,,,,,,,0.0,,,-1.0,,,"


@pytest.mark.parametrize(
    ("table", "row", "kind", "rows"),
    [
        ("split", "odd5,50000005,12000022", "too few cells", 6),
        ("split", "odd5,50000005,1200002ñ,test", "encoding", 6),
        ("split", "odd5,50000005,,test", "no subject_id", 6),
        ("split", "odd5,50000005,12000022,val", "no split", 6),
        ("split", "other,50000005,12000022,test", "no metadata", 6),
        ("split", "pa1,50000001,10000032,train", "duplicate picture", 6),
        ("split", "odd5,50000003,12000022,test", "study of two patients or splits", 6),
        ("split", "odd5,50000005,1/../../../../..,test", "path outside", 6),
        ("metadata", "pa4,12000022,50000005,,8,,", "duplicate id", 7),
        ("chexpert", "10000032,50000001,2,,,,,,,0.0,,,-1.0,,,", "label", 7),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(folder, table, row, kind, rows):
  _write(folder, table, _TABLES[table].replace(_LAST[table], row), "latin-1")
  found = _open(folder)
  first = found.refused[0]
  assert (first.kind, found.num_rows) == (kind, rows)
  assert f"{table}.csv.gz row {2 if table == 'chexpert' else 7}" in first.reason
  assert len(found.studies) == (5 if table == "chexpert" else 4)
  for secret in ("12000022", "10000032", "5000000", "1200002", "zebra"):
    assert secret not in first.reason


@pytest.mark.parametrize(
    ("table", "column"), [("split", "split"), ("metadata", "ViewPosition"), ("chexpert", "Edema")]
)
def test_a_missing_table_or_column_is_an_error(folder, table, column):
  _write(folder, table, _TABLES[table].replace(column, "other"))
  with pytest.raises(UserError, match=rf"{table}\.csv\.gz has no column '{column}'"):
    _open(folder)
  (folder / f"mimic-cxr-2.0.0-{table}.csv.gz").unlink()
  with pytest.raises(UserError, match=rf"has no mimic-cxr-2\.0\.0-{table}\.csv"):
    _open(folder)


def test_a_release_without_reports_has_pictures_and_labels(folder):
  for path in folder.glob("**/s*.txt"):
    path.unlink()
  for table in folder.glob("mimic_cxr_sectioned.csv*"):
    table.unlink()
  found = _open(folder).studies
  assert found and all(study.report is None and study.pictures for study in found)
