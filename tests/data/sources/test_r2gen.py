import json
import re

import numpy as np
import pytest

from chexmix_jax import labels
from chexmix_jax.data import images
from chexmix_jax.data.sources import r2gen, source
from chexmix_jax.errors import UserError


def test_studies_keep_splits_patients_and_images(write_annotation, tmp_path):
  found = r2gen.studies(write_annotation(5), tmp_path).studies
  assert [s.split for s in found] == ["train"] * 4 + ["test"]
  assert [s.patient_id for s in found] == ["p0", "p0", "p1", "p1", "q"]
  assert found[1].report().findings == "Report  number 1.\n"
  assert found[1].labels[labels.INDEX["Edema"]] == labels.POSITIVE
  expected = images.read_image(tmp_path / "images" / "1.png", 16)
  np.testing.assert_array_equal(found[1].pictures[0].read(16), expected[..., 0])


def test_subject_id_more_images_and_no_labels(write_annotation, tmp_path):
  path = write_annotation(4, subject_id=17, labels=None, image_path=["3.png", "./3.png/../2.jpg"])
  (tmp_path / "images" / "2.jpg").write_bytes((tmp_path / "images" / "2.png").read_bytes())
  study = r2gen.studies(path, tmp_path).studies[-1]
  assert study.patient_id == "17" and study.labels is None
  assert [picture.view for picture in study.pictures] == ["frontal", "unknown"]
  assert study.pictures[1].file == str(tmp_path / "images" / "2.jpg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, r"test\[0\] has no usable 'id'"),
        ({"report": 5}, r"test\[0\] has no usable 'report'"),
        ({"image_path": []}, r"test\[0\] has no usable 'image_path'"),
        ({"image_path": ["2.png", 3]}, r"test\[0\] has no usable 'image_path'"),
        ({"labels": "Edema"}, r"test\[0\] has no usable 'labels'"),
        ({"labels": ["Edemma"]}, r"test\[0\]: 'Edemma' is not"),
        ({"image_path": ["none.png"]}, r"test\[0\]: an image of it is not on disk"),
        ({"image_path": ["../../2.png"]}, r"test\[0\] names a file outside"),
        ({"image_path": ["/etc/passwd"]}, r"test\[0\] names a file outside"),
        ({"id": "p0_0"}, r"test\[0\] has the study id of .*train\[0\]"),
        ({"image_path": ["1.png"]}, r"test\[0\] names a picture that stands before"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(write_annotation, tmp_path, change, message):
  found = r2gen.studies(write_annotation(3, **change), tmp_path)
  (refusal,) = found.refused
  assert re.search(message, refusal.reason)
  assert len(found.studies) == 2 and found.num_rows == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON .line 1"),
        ("[1, 2]", "must be of the form"),
        (json.dumps({"valid": []}), "has a split 'valid'"),
        (json.dumps({"train": []}), "no row that can be used"),
        (json.dumps({"train": [3]}), "no usable 'id'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(UserError, match=message):
    r2gen.studies(tmp_path / "a.json", tmp_path)


def test_a_file_of_another_encoding_is_named(tmp_path):
  (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match=r"a\.json is not UTF-8"):
    r2gen.studies(tmp_path / "a.json", tmp_path)


def test_the_real_set(shared):
  found = r2gen.studies(shared / "data" / "matched" / "annotation.json", shared / "data")
  assert not found.refused
  counts = {split: sum(s.split == split for s in found.studies) for split in source.SPLITS}
  assert counts == {"train": 584, "val": 78, "test": 166}
  patients = [{s.patient_id for s in found.studies if s.split == split} for split in counts]
  assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
  first = found.studies[0]
  assert first.report().findings.startswith("There is bilateral lower lung airspace disease.")
  assert first.labels[labels.INDEX["Pleural Effusion"]] == labels.POSITIVE
  assert first.pictures[0].read(64).shape == (64, 64)
