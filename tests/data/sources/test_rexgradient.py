import json

import pytest

from chexmix_jax.data.sources import rexgradient
from chexmix_jax.errors import UserError


def _entry(**changes):
  return {
      "ImagePath": ["../deid_png/a/1.png", "../deid_png/a/2.png"],
      "ImageViewPosition": ["PA", "LATERAL"],
      "Indication": "Cough.", "Findings": "Clear.", "Impression": "Normal.",
  } | changes  # fmt: skip


@pytest.fixture
def write(tmp_path):
  """Two training studies of a patient, one of validation and one of test, one of them changed."""

  def make(**changes):
    (tmp_path / "metadata").mkdir(exist_ok=True)
    other = {"ImagePath": ["../deid_png/b/1.png"], "ImageViewPosition": [],
             "Indication": "", "Findings": None, "Impression": " "}  # fmt: skip
    splits = {
        "train": {"p1_a": _entry(**changes),
                  "p1_b": _entry(**other, PatientID="p1", StudyDate="2020")},
        "valid": {"p2_a": _entry(ImagePath=["deid_png/c.png"],
                                 ImageViewPosition=["POSTERO_ANTERIOR", "PA"])},
        "test": {"p3_a": _entry(ImagePath=["../deid_png/d.png", "../deid_png/e.png"],
                                ImageViewPosition=["AP"], Findings=float("nan"))},
    }  # fmt: skip
    for name, studies in splits.items():
      path = tmp_path / "metadata" / f"{name}_metadata_view_position.json"
      path.write_text(json.dumps(studies))
    return tmp_path

  return make


def test_studies_of_the_set(write):
  folder = write(StudyDate="2019")
  found = rexgradient.studies(folder, folder).studies
  assert [(s.study_id, s.patient_id, s.split) for s in found] == [
      ("p1_a", "p1", "train"), ("p1_b", "p1", "train"), ("p2_a", "p2", "val"),
      ("p3_a", "p3", "test"),
  ]  # fmt: skip
  assert [p.view for p in found[0].pictures] == ["frontal", "lateral"]
  assert found[0].pictures[0].file == str(folder / "deid_png" / "a" / "1.png")
  assert found[2].pictures[0].file == str(folder / "deid_png" / "c.png")
  assert [p.view for p in found[1].pictures] == ["unknown"] and found[1].report is None
  assert [p.view for p in found[2].pictures] == ["frontal"]
  assert [p.view for p in found[3].pictures] == ["frontal", "unknown"]
  assert found[3].report().findings == "" and found[3].report().impression == "Normal."
  sections = found[0].report()
  assert (sections.indication, sections.findings, sections.impression) == (
      "Cough.", "Clear.", "Normal."
  )  # fmt: skip
  assert found[1].prior() == sections and found[0].prior is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImagePath": []}, "entry 1 has no usable 'ImagePath'"),
        ({"Impression": "\ud800"}, "entry 1 is not UTF-8 text"),
        ({"ImagePath": None}, "view_position.json entry 1 has no usable 'ImagePath'"),
        ({"ImagePath": ["../../../x.png"]}, "entry 1 names a file outside"),
        ({"ImagePath": ["../deid_png/b/1.png"]}, "names a picture that stands before"),
        ({"ImagePath": [""]}, "entry 1 names no image"),
        ({"ImageViewPosition": "PA"}, "entry 1 has no usable 'ImageViewPosition'"),
        ({"Findings": 5}, "entry 1 has a section that is no text"),
    ],
)
def test_a_bad_entry_is_refused_and_the_rest_goes_on(write, assert_refused, changes, message):
  folder = write(**changes)
  assert_refused(rexgradient.studies(folder, folder), message, 4, ("Clear", "p1_"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"p1_b"', '"p1_a"', "train_metadata.* entry 2 has the study id of .* entry 1"),
        ('"p1_b"', '"p2_a"', "valid_metadata.* entry 1 has the study id of .*train"),
        ('"p1_b"', '" "', "entry 2 has no id"),
        ('"p1_b": {', '"p1_b": 5, "p1_c": {', "entry 2 has no usable 'ImagePath'"),
    ],
)
def test_an_id_or_an_entry_that_is_no_good_is_refused(write, assert_refused, old, new, message):
  folder = write()
  path = folder / "metadata" / "train_metadata_view_position.json"
  path.write_text(path.read_text().replace(old, new))
  number = 4 + new.count("p1_c")
  assert_refused(rexgradient.studies(folder, folder), message, number, ("p1_", "p2_"))


@pytest.mark.parametrize("content", ["[1]", "{", "\udcff"])
def test_a_bad_file_is_named(write, content):
  folder = write()
  path = folder / "metadata" / "valid_metadata_view_position.json"
  path.write_bytes(content.encode(errors="surrogateescape"))
  with pytest.raises(UserError, match=r"valid_metadata_view_position\.json"):
    rexgradient.studies(folder, folder)
  path.unlink()
  with pytest.raises(UserError, match="has no valid_metadata_view_position"):
    rexgradient.studies(folder, folder)
