import json

import numpy as np
import pytest

from chexmix_jax import labels
from chexmix_jax.data import images
from chexmix_jax.data.sources import r2gen, source
from chexmix_jax.errors import UserError


def _label(report):
  found = np.full(14, labels.UNKNOWN, np.int8)
  found[labels.INDEX["Edema"]] = "edema" in report
  return found


def test_studies_keep_splits_patients_and_images(write_annotation, tmp_path):
  found = r2gen.studies(write_annotation(5), _label).studies
  assert [s.split for s in found] == ["train"] * 4 + ["test"]
  assert [s.patient_id for s in found] == ["p0", "p0", "p1", "p1", "p2"]
  content = found[1].load(16)
  assert content.report == "Report number 1."
  assert content.labels[labels.INDEX["Edema"]] == labels.POSITIVE
  expected = images.read_image(tmp_path / "images" / "1.png", 16)
  np.testing.assert_array_equal(content.image, expected[..., 0])


def test_subject_id_and_labels_from_the_report(write_annotation):
  path = write_annotation(2, subject_id=17, labels=None, report="no edema")
  study = r2gen.studies(path, _label).studies[-1]
  assert study.patient_id == "17"
  np.testing.assert_array_equal(study.load(8).labels, _label("no edema"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, r"test\[0\] has no usable 'id'"),
        ({"report": 5}, r"test\[0\] has no usable 'report'"),
        ({"image_path": []}, r"test\[0\] has no usable 'image_path'"),
        ({"labels": "Edema"}, r"test\[0\] has no usable 'labels'"),
        ({"labels": ["Edemma"]}, r"test\[0\]: 'Edemma' is not"),
        ({"image_path": ["none.png"]}, r"none\.png does not exist"),
    ],
)
def test_a_bad_row_is_named(write_annotation, change, message):
  path = write_annotation(3, **change)
  with pytest.raises(UserError, match=message):
    source.load_record(r2gen.studies(path, _label).studies[-1], 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON .line 1"),
        ("[1, 2]", "must be of the form"),
        (json.dumps({"valid": []}), "has a split 'valid'"),
        (json.dumps({"train": []}), "lists no study"),
        (json.dumps({"train": [3]}), "no usable 'id'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(UserError, match=message):
    r2gen.studies(tmp_path / "a.json", _label)


def test_a_file_of_another_encoding_is_named(tmp_path):
  (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match=r"a\.json is not UTF-8"):
    r2gen.studies(tmp_path / "a.json", _label)


def test_the_real_set(shared):
  found = r2gen.studies(shared / "data" / "matched" / "annotation.json", _label).studies
  counts = {split: sum(s.split == split for s in found) for split in source.SPLITS}
  assert counts == {"train": 584, "val": 78, "test": 166}
  patients = [{s.patient_id for s in found if s.split == split} for split in source.SPLITS]
  assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
  record = source.load_record(found[0], 64)
  assert record["report"].startswith("There is bilateral lower lung airspace disease.")
  assert record["labels"][labels.INDEX["Pleural Effusion"]] == labels.POSITIVE
