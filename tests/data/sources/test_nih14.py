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
  found = nih14.studies(folder, folder).studies
  assert len(found) == 60
  patients = {split: {s.patient_id for s in found if s.split == split} for split in source.SPLITS}
  assert patients["test"] == {str(i) for i in range(10)}
  assert patients["val"] and not patients["train"] & patients["val"]
  assert 1 <= len(patients["val"]) <= 6


def test_labels_views_and_the_order_of_a_patients_images(folder):
  found = nih14.studies(folder, folder).studies
  assert found[1].labels[labels.INDEX["Edema"]] == labels.POSITIVE
  assert found[0].labels[labels.INDEX["No Finding"]] == labels.POSITIVE
  assert found[0].report is None and found[1].prior is None
  assert found[0].pictures[0].view == "frontal"
  assert found[0].pictures[0].read(8).shape == (8, 8)


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda f: (f / "Data_Entry_2017_v2020.csv").unlink(), "has no Data_Entry_2017"),
        (lambda f: (f / "test_list.txt").unlink(), "test_list.txt cannot be read"),
        (
            lambda f: (f / "Data_Entry_2017_v2020.csv").write_text("Image Index,Patient ID\n"),
            "has no column 'Finding Labels'",
        ),
    ],
)
def test_what_is_missing_is_named(folder, mend, message):
  mend(folder)
  with pytest.raises(UserError, match=message):
    nih14.studies(folder, folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"00000002_001.png,Edema|Effusion,0,2\n", b"00000002_001.png,Edema\n", "too few cells"),
        (b"00000002_001.png,Edema|Eff", b"00000002_001.png,Edema|\xffff", "is not UTF-8"),
        (b"00000002_001.png,Edema", b"00000002_001.png,Edemma", "'Edemma' is not an NIH"),
        (b"00000002_001.png", b"00000002_000.png", "has the study id of"),
        (b"00000002_001.png", b"00000002_009.png", "is in neither train_val_list.txt nor"),
        (b"00000002_001.png", b"", "has no 'Image Index'"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(folder, old, new, message):
  table = folder / "Data_Entry_2017_v2020.csv"
  assert old in table.read_bytes()
  table.write_bytes(table.read_bytes().replace(old, new, 1))
  found = nih14.studies(folder, folder)
  (refusal,) = found.refused
  assert "_v2020.csv row 7" in refusal.reason and message in refusal.reason
  assert found.num_rows == 60 and len(found.studies) == 59


def test_an_image_that_is_not_on_disk_is_refused(folder):
  (folder / "images_001/images/00000000_000.png").unlink()
  found = nih14.studies(folder, folder)
  assert [r.kind for r in found.refused] == ["missing image"] and len(found.studies) == 59


def test_the_real_set(shared):
  folder = shared / "data" / "nih14"
  found = nih14.studies(folder, folder)
  patients = [{s.patient_id for s in found.studies if s.split == split} for split in source.SPLITS]
  assert len(found.studies) == 845 and len(set.union(*patients)) == 701 and not found.refused
  assert sum(map(len, patients)) == 701
  assert found.studies[0].labels[labels.INDEX["Atelectasis"]] == labels.POSITIVE
