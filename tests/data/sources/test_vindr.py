import pytest

from chexmix_jax.data.sources import vindr
from chexmix_jax.errors import UserError
from chexmix_jax.labels import INDEX, NEGATIVE, UNKNOWN

_TRAIN = """image_id,rad_id,Cardiomegaly,Nodule/Mass,Pleural effusion,Other diseases,No finding
a,R1,1,0,1,0,0
a,R2,1,0,0,0,0
a,R3,0,1,1,1,0
b,R1,0,0,0,0,1
b,R2,0,0,0,0,1
b,R3,0,1,0,0,0
"""
_TEST = """image_id,Cardiomegaly,Nodule/Mass,Pleural effusion,Other disease,No finding
t,0,1,0,1,0
"""


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "annotations").mkdir()
  (tmp_path / "annotations" / "image_labels_train.csv").write_text(_TRAIN)
  (tmp_path / "annotations" / "image_labels_test.csv").write_text(_TEST)
  return tmp_path


def _positive(study):
  return {name for name, i in INDEX.items() if study.labels[i] == 1}


def test_most_of_the_readers_decide(folder):
  found = vindr.studies(folder, folder).studies
  assert [s.study_id for s in found] == ["a", "b", "t"] and found[2].split == "test"
  assert {s.split for s in found[:2]} <= {"train", "val"}
  assert _positive(found[0]) == {"Cardiomegaly", "Pleural Effusion"}
  assert _positive(found[1]) == {"No Finding"}
  assert _positive(found[2]) == {"Lung Lesion", "Lung Opacity"}
  assert found[0].labels[INDEX["Lung Lesion"]] == NEGATIVE
  # Neither has a column here.
  assert found[0].labels[INDEX["Support Devices"]] == UNKNOWN
  assert found[0].labels[INDEX["Edema"]] == UNKNOWN
  assert found[0].pictures[0].file == str(folder / "train" / "a.dicom")
  assert found[2].pictures[0].file == str(folder / "test" / "t.dicom")
  assert found[0].report is None and found[0].pictures[0].view == "frontal"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b,R4,0,0,2,0,0", "row 8 has a cell other than 0 and 1"),
        ("b,R4,0,0,,0,0", "row 8 has a cell other than 0 and 1"),
        ("b,R1,0,0,0,0,1", "row 8 repeats an image and its reader"),
        (",R1,0,0,0,0,1", "row 8 has no 'image_id'"),
        ("c,,0,0,0,0,1", "row 8 has no 'rad_id'"),
        ("../../x,R1,0,0,0,0,1", "row 8 names a file outside"),
        ("c", "row 8 has too few cells"),
        ("c\udcff,R1,0,0,0,0,1", "row 8 is not UTF-8"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(folder, assert_refused, row, message):
  path = folder / "annotations" / "image_labels_train.csv"
  path.write_bytes(f"{_TRAIN}{row}\n".encode(errors="surrogateescape"))
  assert_refused(vindr.studies(folder, folder), message, 8)


def test_the_image_goes_by_the_other_readers(folder, assert_refused):
  path = folder / "annotations" / "image_labels_train.csv"
  path.write_text(_TRAIN.replace("a,R3,0,1,1,1,0", "a,R3,0,1,7,1,0"))
  found = vindr.studies(folder, folder)
  assert_refused(found, "row 4 has a cell other than 0 and 1", 7)
  # One of two saw the effusion, which is no majority.
  assert _positive(found.studies[0]) == {"Cardiomegaly"}


def test_names_of_findings_are_compared_leniently(folder):
  path = folder / "annotations" / "image_labels_test.csv"
  path.write_text("image_id,pleural effusions ,Rib fracture\nt,1,1\n")
  found = vindr.studies(folder, folder).studies
  assert _positive(found[2]) == {"Pleural Effusion", "Fracture"}


def test_an_image_of_both_tables_is_refused(folder, assert_refused):
  path = folder / "annotations" / "image_labels_test.csv"
  path.write_text(f"{_TEST}a,0,0,0,0,1\n")
  assert_refused(vindr.studies(folder, folder), "test.csv row 3 has the study id of .*train", 8)


def test_a_missing_table_or_column_is_named(folder):
  path = folder / "annotations" / "image_labels_train.csv"
  path.write_text("image_id,rad_id,Other\na,R1,0\n")
  with pytest.raises(UserError, match="has no column of a finding"):
    vindr.studies(folder, folder)
  path.write_text(_TRAIN.replace("rad_id", "reader"))
  with pytest.raises(UserError, match="has no column 'rad_id'"):
    vindr.studies(folder, folder)
  path.unlink()
  with pytest.raises(UserError, match=r"has no image_labels_train\.csv"):
    vindr.studies(folder, folder)
