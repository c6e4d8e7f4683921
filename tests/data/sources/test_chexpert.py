import shutil

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data.sources import chexpert
from chexmix_jax.errors import UserError
from chexmix_jax.labels import CHEXPERT_14

_NAMES = ",".join(CHEXPERT_14)
_TRAIN = f"""Path,Sex,Age,Frontal/Lateral,AP/PA,{_NAMES}
TOP/train/patient00001/study2/view2_lateral.jpg,Male,70,Lateral,,1.0,,,,,,,,0.0,,-1.0,,,1.0
TOP/train/patient00001/study2/view1_frontal.jpg,Male,70,Frontal,AP,1.0,,,,,,,,0.0,,-1.0,,,1.0
TOP/train/patient00001/study1/view1_frontal.jpg,Male,70,Frontal,AP,,,,,,,,,,,,,,
TOP/train/patient00002/study1/view1_frontal.jpg,Male,70,Frontal,PA,,,,,,,,,,,,,,
"""
_LAST = "TOP/train/patient00002/study1/view1_frontal.jpg,Male,70,Frontal,PA,,,,,,,,,,,,,,"
_VALID = f"""Path,Sex,Age,Frontal/Lateral,AP/PA,{_NAMES}
TOP/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,{"0.0," * 13}1.0
"""
_TRUTH = f"""Study,{_NAMES}
CheXpert-v1.0/test/patient64741/study1,{"0," * 13}1
CheXpert-v1.0/test/patient64742/study1,{"0," * 13}1
"""
_TESTS = f"""Path,{_NAMES}
test/patient64741/study1/view1_frontal.jpg,{"0," * 13}1
"""
_SMALL, _FULL = "CheXpert-v1.0-small", "CheXpert-v1.0"


def _image(path, value=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((8, 9), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
  """The small set in its own folder, with the test set beside train and valid."""
  folder = tmp_path / _SMALL
  folder.mkdir()
  (folder / "train.csv").write_text(_TRAIN.replace("TOP", _SMALL))
  (folder / "valid.csv").write_text(_VALID.replace("TOP", _SMALL))
  (folder / "groundtruth.csv").write_text(_TRUTH)
  for name in ("view1_frontal", "view2_lateral"):
    _image(folder / "test" / "patient64741" / "study1" / f"{name}.jpg")
  _image(folder / "train" / "patient00001" / "study2" / "view1_frontal.jpg", 50)
  return folder


def test_studies_of_the_three_tables(folder):
  found = chexpert.studies(folder, folder)
  assert [(s.study_id, s.patient_id, s.split) for s in found.studies] == [
      ("patient00001/study2", "patient00001", "train"),
      ("patient00001/study1", "patient00001", "train"),
      ("patient00002/study1", "patient00002", "train"),
      ("patient64541/study1", "patient64541", "val"),
      ("patient64741/study1", "patient64741", "test"),
  ]
  assert set(found.description) == {"source", "train_sha256", "val_sha256", "test_sha256"}
  first, *_, last = found.studies
  for study in (first, last):
    assert [p.view for p in study.pictures] == ["frontal", "lateral"]
    assert study.report is None and study.prior is None
  assert (first.pictures[0].read(4) == 50).all() and (last.pictures[1].read(4) == 0).all()
  labels = dict(zip(CHEXPERT_14, first.labels, strict=True))
  assert (labels["No Finding"], labels["Atelectasis"], labels["Edema"]) == (1, 0, -2)
  assert labels["Pleural Effusion"] == -1 and last.labels.tolist() == [0] * 13 + [1]
  # The other study of the test table has no images.
  assert [(r.kind, found.num_rows) for r in found.refused] == [("missing image", 7)]
  assert "groundtruth.csv row 3" in found.refused[0].reason


def test_the_first_folder_is_cut_or_kept(folder, tmp_path):
  inside = chexpert.studies(folder, folder)
  above = chexpert.studies(tmp_path, tmp_path)
  assert inside.studies[0].pictures[0].file == above.studies[0].pictures[0].file
  # Tables above the folder of images.
  for path in folder.glob("*.csv"):
    path.rename(tmp_path / path.name)
  assert chexpert.studies(tmp_path, tmp_path).description == inside.description
  assert chexpert.studies(tmp_path, folder).studies[0].pictures[0].read(4).max() == 50


def test_the_folders_of_the_full_size(folder, tmp_path):
  batch, train = (tmp_path / f"{_FULL} batch {n}" for n in ("1 (validate & csv)", "2 (train 1)"))
  shutil.move(folder / "train", train)
  _image(batch / "valid" / "patient64541" / "study1" / "view1_frontal.jpg", 60)
  (batch / "train.csv").write_text(_TRAIN.replace("TOP", _FULL))
  (batch / "valid.csv").write_text(_VALID.replace("TOP", _FULL))
  shutil.rmtree(folder)
  found = chexpert.studies(tmp_path, tmp_path)
  assert not found.refused and "test_sha256" not in found.description
  assert (found.studies[0].pictures[0].read(4) == 50).all()
  assert (found.studies[3].pictures[0].read(4) == 60).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [("test/groundtruth.csv", _TRUTH), ("test_labels.csv", _TESTS), ("test.csv", _TESTS)],
)
def test_tables_of_the_test_set(folder, name, content):
  (folder / "groundtruth.csv").unlink()
  (folder / name).write_text(content)
  found = chexpert.studies(folder, folder).studies
  assert len(found) == 5
  assert (found[-1].split, found[-1].pictures[0].view) == ("test", "frontal")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("TOP/train/patient00002/study1/view1_frontal.jpg,Male", "too few cells"),
        (_LAST.replace("Male", "ñ"), "encoding"),
        (_LAST.replace("TOP/train/patient00002/study1/view1_frontal.jpg", ""), "no Path"),
        (_LAST.replace("/study1", ""), "no study"),
        (_LAST.replace("study1/", "study1/../../../../"), "path outside"),
        (_LAST.replace("TOP/train", "TOP/.."), "path outside"),
        (_LAST[:-1] + ",2.0", "label"),
        (_LAST[:-1] + ",Zebra", "label"),
        (_LAST.replace("patient00002/study1", "patient00001/study1"), "duplicate picture"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(folder, row, kind):
  text = _TRAIN.replace(_LAST, row).replace("TOP", _SMALL)
  (folder / "train.csv").write_text(text, encoding="latin-1")
  found = chexpert.studies(folder, folder)
  first = found.refused[0]
  assert (first.kind, found.num_rows, len(found.studies)) == (kind, 7, 4)
  assert f"{folder / 'train.csv'} row 5" in first.reason
  assert "patient0" not in first.reason and "Zebra" not in first.reason


def test_a_study_in_two_splits_or_twice_is_refused(folder):
  (folder / "valid.csv").write_text(_TRAIN.replace("TOP", _SMALL))
  (folder / "groundtruth.csv").write_text(_TRUTH.replace("64742", "64741"))
  found = chexpert.studies(folder, folder)
  kinds = [refusal.kind for refusal in found.refused]
  assert kinds == ["study of two patients or splits"] * 4 + ["duplicate picture"]


@pytest.mark.parametrize(
    ("name", "column"),
    [("train.csv", "Edema"), ("valid.csv", "Frontal/Lateral"), ("groundtruth.csv", "Study")],
)
def test_a_missing_table_or_column_is_an_error(folder, name, column):
  text = (folder / name).read_text()
  (folder / name).write_text(text.replace(column, "other", 1))
  with pytest.raises(UserError, match=rf"{name} has no column '{column}'"):
    chexpert.studies(folder, folder)
  if name != "groundtruth.csv":
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}"):
      chexpert.studies(folder, folder)
