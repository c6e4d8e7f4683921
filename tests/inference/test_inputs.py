"""Which pictures there are, and how one is read."""

import json

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data import dicom, images
from chexmix_jax.errors import UserError
from chexmix_jax.inference.inputs import as_pixels, list_inputs

RAW = np.random.default_rng(0).integers(0, 60000, (20, 30), np.uint16)
COLOUR = np.random.default_rng(1).integers(0, 256, (24, 18, 3), np.uint8)


def names_and_paths(inputs, root):
  return [
      (name, path.relative_to(root).as_posix())
      for name, path in zip(inputs.names, inputs.paths, strict=True)
  ]


def test_a_file_or_a_folder(tmp_path):
  for name in ("b.png", "a/z.JPG", "a/b/c.jpeg", "a/notes.txt", "d.tiff"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  assert list_inputs(tmp_path / "b.png").names == ("b.png",)
  inputs = list_inputs(tmp_path)
  assert names_and_paths(inputs, tmp_path) == [(n, n) for n in ("a/b/c.jpeg", "a/z.JPG", "b.png")]
  assert inputs.cases is None


@pytest.mark.parametrize(
    ("header", "column", "expected"),
    [
        ("id,image_path,path", None, "two"),
        ("Path,id,other", None, "one"),
        ("id,study,image", None, "three"),
        ("id,image,picture", "picture", "three"),
    ],
)
def test_a_csv_names_its_column_or_has_a_known_one(tmp_path, header, column, expected):
  (tmp_path / "a.csv").write_text(f"\ufeff{header}\none.png,two.png,three.png\n", encoding="utf-8")
  inputs = list_inputs(tmp_path / "a.csv", column)
  assert names_and_paths(inputs, tmp_path) == [(f"{expected}.png", f"{expected}.png")]


def test_paths_start_from_the_root_that_is_given(tmp_path):
  (tmp_path / "a.csv").write_text("path\n/p10/x.png\ny.png\n")
  root = tmp_path / "files"
  assert [str(p) for p in list_inputs(tmp_path / "a.csv", None, root).paths] == [
      f"{root}/p10/x.png", f"{root}/y.png",
  ]  # fmt: skip
  assert [str(p) for p in list_inputs(tmp_path / "a.csv").paths] == [
      "/p10/x.png", f"{tmp_path}/y.png",
  ]  # fmt: skip


def test_a_rexrank_json_has_one_picture_a_case(tmp_path):
  cases = {
      "c1": {"image_path": ["1/0.png", "1/1.png"], "key_image_path": "1/1.png", "context": "x"},
      "c2": {"image_path": ["2/0.png"]},
      "c3": {"image_path": "3.png"},
  }
  (tmp_path / "a.json").write_text(json.dumps(cases))
  inputs = list_inputs(tmp_path / "a.json")
  assert names_and_paths(inputs, tmp_path) == [
      ("c1", "1/1.png"), ("c2", "2/0.png"), ("c3", "3.png"),
  ]  # fmt: skip
  assert inputs.cases == cases


def test_texts_stand_beside_the_pictures(tmp_path):
  (tmp_path / "a.csv").write_text("path,Q,why\na.png, Is it?,x\na.png,,\nb.png\n")
  inputs = list_inputs(tmp_path / "a.csv", text_columns={"question": "Q", "indication": "why"})
  assert inputs.names == ("a.png", "a.png", "b.png")
  assert inputs.texts == {"question": ("Is it?", "", ""), "indication": ("x", "", "")}
  cases = {"a": {"image_path": "a.png", "context": "x"}, "b": {"image_path": "b.png"}}
  path = tmp_path / "a.json"
  path.write_text(json.dumps(cases | {"b": cases["b"] | {"context": float("nan")}}))
  assert list_inputs(path, text_columns={"indication": "context"}).texts == {
      "indication": ("x", "")
  }
  path.write_text(json.dumps(cases))
  with pytest.raises(UserError, match=r"Case b of .*a\.json has no 'context' for the indication"):
    list_inputs(path, text_columns={"indication": "context"})
  with pytest.raises(UserError, match=r"Row 2 of .*a\.csv has no 'q' .* --columns=question=COLUMN"):
    list_inputs(tmp_path / "a.csv", text_columns={"question": "q"})
  (tmp_path / "a.png").touch()
  with pytest.raises(UserError, match=r"holds pictures without texts; .* has q"):
    list_inputs(tmp_path / "a.png", text_columns={"question": "q"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,file\n1,2\n", "a.csv has no column image_path, path, image.* of id, file by"),
        ("a.csv", "id,path\n1,\n", r"Row 2 of .*a\.csv has no path"),
        ("a.csv", "path\n", r"a\.csv has no picture"),
        ("a.csv", b"path\n\xff\xfe.png\n", r"a\.csv cannot be read as a CSV"),
        ("a.json", "{", r"a\.json is no JSON"),
        ("a.json", "[1]", r"a\.json is no ReXrank JSON"),
        ("a.json", '{"c": {"report": "x"}}', r"Case c of .*a\.json has neither"),
        ("a.json", '{"c": {"image_path": []}}', r"Case c of .*a\.json has neither"),
        ("a.txt", "", r"a\.txt is no picture, folder, CSV or JSON"),
    ],
)
def test_what_cannot_be_listed_is_named(tmp_path, name, content, message):
  data = content.encode() if isinstance(content, str) else content
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError, match=message):
    list_inputs(tmp_path / name)


def test_a_missing_list_and_an_empty_folder_are_named(tmp_path):
  with pytest.raises(UserError, match="has no picture"):
    list_inputs(tmp_path)
  with pytest.raises(UserError, match=r"b\.csv cannot be read as a CSV"):
    list_inputs(tmp_path / "b.csv")


def test_dicom_files_without_pydicom_are_refused_before_the_work(tmp_path, monkeypatch):
  (tmp_path / "a.dcm").touch()
  monkeypatch.setattr(dicom.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="chexmix-jax"):
    list_inputs(tmp_path)


def test_files_pictures_and_arrays_are_read_alike(tmp_path):
  Image.fromarray(RAW).save(tmp_path / "a.png")
  Image.fromarray(COLOUR).save(tmp_path / "a.jpg")
  for channels in (1, 3):
    png, jpg = (as_pixels(tmp_path / name, 16, channels) for name in ("a.png", "a.jpg"))
    assert png.shape == (16, 16, channels) and png.dtype == np.float32
    np.testing.assert_array_equal(as_pixels(RAW, 16, channels), png)
    np.testing.assert_array_equal(as_pixels(str(tmp_path / "a.png"), 16, channels), png)
    for name, expected in (("a.png", png), ("a.jpg", jpg)):
      with Image.open(tmp_path / name) as picture:
        np.testing.assert_array_equal(as_pixels(picture, 16, channels), expected)
    # Pixels that are ready stay as they are.
    np.testing.assert_array_equal(as_pixels(png, 16, channels), png)
  rgb = images.read_image(tmp_path / "a.jpg", 16)
  np.testing.assert_array_equal(as_pixels(tmp_path / "a.jpg", 16, 3), images.to_float(rgb))
  grey = as_pixels(png[..., 0], 16, 3)
  np.testing.assert_array_equal(grey, np.repeat(png[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 16)), r"Pixels of shape \(8, 16\)"),
        (np.zeros((16, 16, 2)), r"Pixels of shape"),
        (np.zeros((16,), np.uint8), "is no picture"),
        (np.zeros((16, 16, 7), np.uint8), "is no picture"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array, message):
  with pytest.raises(UserError, match=message):
    as_pixels(array, 16, 3)
