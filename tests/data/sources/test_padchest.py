import gzip

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data.sources import padchest
from chexmix_jax.errors import UserError
from chexmix_jax.labels import INDEX, NEGATIVE, UNKNOWN

_NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_HEAD = ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,Projection,Report,Labels"
_ROWS = [
    "0,a.png,0,20140915,S1,P1,PA,sin hallazgos .,\"['normal']\"",
    "1,b.png,0,20140915,S1,P1,L,sin hallazgos .,\"['normal']\"",
    "2,c.png,14,20130915,S2,P1,AP_horizontal,derrame pleural .,"
    "\"['pleural effusion', 'pneumonia', ' rare thing']\"",
    "3,d.png,14,20140101,S3,P2,COSTAL,costillas .,\"['normal']\"",
    "4,e.png,14,20140101,S4,P2,PA,igual .,\"['unchanged']\"",
    "5,e2.png,14,20140101,S4,P2,EXCLUDE,igual .,\"['normal']\"",
    "6,g.png,14,20140101,S6,P3,L,,\"['unchanged', \"\"hydropneumothorax\"\", 'NSG tube']\"",
    "7,h.png,14,20140101,S7,P4,PA,nada .,nan",
]


@pytest.fixture
def write(tmp_path):
  def make(rows=(), head=_HEAD, zipped=False):
    text = "\n".join([head, *_ROWS, *rows, ""]).encode(errors="surrogateescape")
    path = tmp_path / (f"{_NAME}.gz" if zipped else _NAME)
    path.write_bytes(gzip.compress(text) if zipped else text)
    return tmp_path

  return make


def _positive(study):
  return {name for name, i in INDEX.items() if study.labels[i] == 1}


@pytest.mark.parametrize("zipped", [False, True])
def test_studies_of_the_set(write, zipped):
  folder = write(zipped=zipped)
  (folder / "0").mkdir()
  pixels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 100
  Image.fromarray(pixels).save(folder / "0" / "a.png")
  found = padchest.studies(folder, folder).studies
  assert [s.study_id for s in found] == ["S1", "S2", "S4", "S6", "S7"]
  assert [s.patient_id for s in found] == ["P1", "P1", "P2", "P3", "P4"]
  assert found[0].split == found[1].split
  assert [p.view for p in found[0].pictures] == ["frontal", "lateral"]
  assert found[1].pictures[0].view == "frontal"
  assert found[1].pictures[0].file == str(folder / "14" / "c.png")
  assert found[0].pictures[0].read(16)[0, 0] == 0
  assert found[0].report().language == "es" and found[0].report().findings == "sin hallazgos ."
  # The second study is the earlier one.
  assert found[0].prior().findings == "derrame pleural ." and found[1].prior is None
  assert _positive(found[1]) == {"Pleural Effusion", "Pneumonia", "Lung Opacity"}
  assert found[1].labels[INDEX["Edema"]] == NEGATIVE
  assert (found[2].labels == UNKNOWN).all() and (found[4].labels == UNKNOWN).all()
  assert _positive(found[3]) == {"Pleural Effusion", "Pneumothorax", "Support Devices"}
  assert _positive(found[0]) == {"No Finding"} and found[3].report is None
  assert len(found[2].pictures) == 1


def test_one_folder_of_several_is_there(write):
  folder = write()
  (folder / "14").mkdir()
  found = padchest.studies(folder, folder).studies
  assert found[0].pictures[0].file == str(folder / "0" / "a.png")


def test_an_empty_folder_is_refused(write, assert_refused):
  folder = write(["8,f.png,,2014,S5,P5,PA,secreto .,[]"])
  (folder / "14").mkdir()
  assert_refused(padchest.studies(folder, folder), "row 10 has no 'ImageDir'", 7)


def test_images_without_folders(write):
  folder = write()
  found = padchest.studies(folder, folder).studies
  assert found[1].pictures[0].file == str(folder / "c.png")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("5,f.png,14,2014,S5,P5,PA,secreto .,__import__('os')", "row 10 has a 'Labels' that is no"),
        ("5,f.png,14,2014,S5,P5,PA,secreto .,\"['normal'\"", "row 10 has a 'Labels' that is no"),
        ("5,f.png,14,2014,S5,P5,PA,secreto .,'normal'", "row 10 has a 'Labels' that is no"),
        ("5,a.png,0,2014,S1,P1,PA,secreto .,[]", "row 10 names a picture that stands before"),
        ("5,f.png,0,2014,S1,P9,PA,secreto .,[]", "row 10 gives its study another patient"),
        ("5,../../f.png,0,2014,S5,P5,PA,secreto .,[]", "row 10 names a file outside"),
        ("5,,0,2014,S5,P5,PA,secreto .,[]", "row 10 has no 'ImageID'"),
        ("5,f.png,0,2014,S5,,PA,secreto .,[]", "row 10 has no 'PatientID'"),
        ("5,f.png,0", "row 10 has too few cells"),
        ("5,f.png,0,2014,S5,P5,PA,coraz\udcf3n secreto,[]", "row 10 is not UTF-8"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(write, assert_refused, row, message):
  folder = write([row])
  # COSTAL and EXCLUDE are skipped, and no rows of the account.
  assert_refused(padchest.studies(folder, folder), message, 7, ("secreto", "P5", "P9"))


def test_a_missing_table_or_column_is_named(write, tmp_path):
  with pytest.raises(UserError, match="has no PADCHEST_chest"):
    padchest.studies(tmp_path, tmp_path)
  folder = write(head=_HEAD.replace("Report", "Text"))
  with pytest.raises(UserError, match="has no column 'Report'"):
    padchest.studies(folder, folder)
