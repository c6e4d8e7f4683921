import gzip

import pytest

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.label_file import read_label_file
from chexmix_jax.errors import UserError

FINDINGS = ("Edema", "Hernia")


def write(folder, text, name="labels.csv"):
  path = folder / name
  opener = gzip.open if name.endswith(".gz") else open
  with opener(path, "wt") as file:
    file.write(text)
  return path


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.gz"])
def test_values_by_study(tmp_path, name):
  path = write(tmp_path, "study_id,Hernia,Other,Edema\na,1,x,-1.0\nb,0,,\n", name)
  found = {study: labels.tolist() for study, labels in read_label_file(path, FINDINGS).items()}
  assert found == {
      "a": [labels_lib.UNCERTAIN, labels_lib.POSITIVE],
      "b": [labels_lib.UNKNOWN, labels_lib.NEGATIVE],
  }


def test_rows_of_one_study_may_be_the_same(tmp_path):
  path = write(tmp_path, "study_id,Edema,Hernia\na,1,0\na,1,0\n")
  assert list(read_label_file(path, FINDINGS)) == ["a"]


def test_the_tables_of_mimic_have_numbers(tmp_path):
  path = write(tmp_path, "subject_id,study_id,Edema\n10,50414267,1\n")
  assert list(read_label_file(path, ("Edema",))) == ["s50414267"]


def test_the_table_of_nih_has_its_own_findings(tmp_path):
  path = write(
      tmp_path,
      "Image Index,Finding Labels,Patient ID\n"
      "00000001_000.png,Cardiomegaly|Hernia,1\n00000002_000.png,No Finding,2\n",
  )
  found = read_label_file(path, labels_lib.NIH14)
  assert len(labels_lib.NIH14) == 14
  named = [labels_lib.NIH14[i] for i in found["00000001_000"].nonzero()[0]]
  assert named == ["Cardiomegaly", "Hernia"] and not found["00000002_000"].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("study_id,Edema,Hernia\n", "has no rows"),
        ("study,Edema,Hernia\na,1,1\n", "no column 'study_id'"),
        ("study_id,Edema\na,1\n", "no labels of 'Hernia'; ask for other findings"),
        ("study_id,Edema,Hernia\na,1,1\nb,2,1\n", "row 3 has a 'Edema' that is not 1, 0, -1"),
        ("study_id,Edema,Hernia\na,1\n", "row 2 has too few cells"),
        ("study_id,Edema,Hernia\n,1,0\n", "row 2"),
        ("study_id,Edema,Hernia\na,1,0\na,1,1\n", "row 3 has other labels than an earlier row"),
        ("Image Index,Finding Labels\na.png,Mass|Oedema\n", "row 2: 'Oedema' is not an NIH"),
    ],
)
def test_bad_tables(tmp_path, text, message):
  with pytest.raises(UserError, match=message):
    read_label_file(write(tmp_path, text), FINDINGS)


def test_a_missing_file(tmp_path):
  with pytest.raises(UserError, match="cannot be read"):
    read_label_file(tmp_path / "none.csv", FINDINGS)
