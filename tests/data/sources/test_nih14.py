import numpy as np
import pytest
from PIL import Image

from chexmix_jax import labels
from chexmix_jax.data.sources import nih14, source
from chexmix_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  """60 images of 30 patients, the first ten of them test; the second part in a second folder."""
  rows, test, train_val = ["Image Index,Finding Labels,Follow-up #,Patient ID"], [], []
  for i in range(60):
    name, patient = f"{i // 2:08d}_{i % 2:03d}.png", i // 2
    part = tmp_path / f"images_{1 + i % 2:03d}" / "images"
    part.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 8), i, np.uint8)).save(part / name)
    findings = "Edema|Effusion" if i % 3 else "No Finding"
    rows.append(f"{name},{findings},0,{patient}")
    (test if patient < 10 else train_val).append(name)
  (tmp_path / "Data_Entry_2017_v2020.csv").write_text("\n".join(rows) + "\n")
  (tmp_path / "test_list.txt").write_text("\n".join(test))
  (tmp_path / "train_val_list.txt").write_text("\n".join(train_val))
  return tmp_path


def test_splits_are_by_patient_and_follow_the_lists(folder):
  found = nih14.studies(folder).studies
  assert len(found) == 60
  patients = {split: {s.patient_id for s in found if s.split == split} for split in source.SPLITS}
  assert patients["test"] == {str(i) for i in range(10)}
  assert patients["val"] and not patients["train"] & patients["val"]
  assert 1 <= len(patients["val"]) <= 6


def test_labels_and_a_report_made_from_them(folder):
  edema, none = (nih14.studies(folder).studies[i].load(8) for i in (1, 0))
  assert edema.labels[labels.INDEX["Edema"]] == labels.POSITIVE
  assert "edema" in edema.report.lower()
  assert none.labels[labels.INDEX["No Finding"]] == labels.POSITIVE
  assert nih14.studies(folder).studies[1].load(8).report == edema.report


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda f: (f / "Data_Entry_2017_v2020.csv").unlink(), "has no Data_Entry_2017"),
        (lambda f: (f / "test_list.txt").unlink(), "test_list.txt cannot be read"),
        (lambda f: (f / "test_list.txt").write_text(""), "row 2 is in neither"),
        (lambda f: (f / "images_001/images/00000000_000.png").unlink(), "row 2: there is no"),
        (
            lambda f: (f / "Data_Entry_2017_v2020.csv").write_text("Image Index,Patient ID\n"),
            "has no column 'Finding Labels'",
        ),
        (
            lambda f: (f / "Data_Entry_2017_v2020.csv").write_text(
                "Image Index,Finding Labels,Patient ID\n00000000_000.png\n"
            ),
            "row 2 has too few cells",
        ),
    ],
)
def test_what_is_missing_is_named(folder, mend, message):
  mend(folder)
  with pytest.raises(UserError, match=message):
    nih14.studies(folder)


def test_an_unknown_finding_names_its_row(folder):
  table = folder / "Data_Entry_2017_v2020.csv"
  table.write_text(table.read_text().replace("Edema|Effusion", "Edema|Efusion", 1))
  with pytest.raises(UserError, match="row 3: 'Efusion' is not"):
    nih14.studies(folder).studies[1].load(8)


def test_the_real_set(shared):
  found = nih14.studies(shared / "data" / "nih14").studies
  patients = [{s.patient_id for s in found if s.split == split} for split in source.SPLITS]
  assert len(found) == 845 and len(set.union(*patients)) == 701
  assert sum(map(len, patients)) == 701
  record = source.load_record(found[0], 64)
  assert record["labels"][labels.INDEX["Atelectasis"]] == labels.POSITIVE
