"""Pictures of DICOM files, written here with pydicom."""

import importlib.util
import pathlib

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data import dicom, images
from chexmix_jax.errors import UserError

RAW = np.random.default_rng(0).integers(0, 4096, (40, 30), np.uint16)


@pytest.fixture
def write(tmp_path):
  """Writes RAW, 12 bits of 16, with some tags changed."""
  pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

  def write(**changes) -> pathlib.Path:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    path = tmp_path / "a.dcm"
    file = pydicom.dataset.FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    tags = {
        "PatientName": "Nobody", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": RAW.shape[0], "Columns": RAW.shape[1], "BitsAllocated": 16, "BitsStored": 12,
        "HighBit": 11, "PixelRepresentation": 0, "PixelData": RAW.tobytes(),
    }  # fmt: skip
    for name, value in (tags | changes).items():
      setattr(file, name, value)
    file.save_as(path)
    return path

  return write


def _read(path):
  numbers, values = dicom.read_dicom(path)
  return values[numbers]


def test_values_are_those_of_the_file(write):
  np.testing.assert_array_equal(_read(write()), RAW)


@pytest.mark.parametrize("bits", [16, 32])
def test_signed_values_of_any_range_are_windowed_like_the_whole_picture(write, bits):
  raw = np.random.default_rng(0).integers(-(1 << bits - 1), (1 << bits - 1) - 1, RAW.shape)
  path = write(
      BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=1,
      PixelData=raw.astype(f"int{bits}").tobytes(),
  )  # fmt: skip
  np.testing.assert_array_equal(_read(path), raw)
  expected = images.grey(images.from_raw(raw.astype(np.float64), 16))
  np.testing.assert_array_equal(images.read_grey(path, 16), expected)


def test_rescaling_comes_before_the_window(write):
  path = write(RescaleSlope=2, RescaleIntercept=-100, WindowCenter=4000, WindowWidth=2001)
  # PS3.3 C.11.2.1.2: linear from 3000 to 5000, onto the range of the rescaled 12 bits.
  low, high = -100, 2 * 4095 - 100
  expected = np.clip((RAW * 2.0 - 100 - 2999.5) / 2000, 0, 1) * (high - low) + low
  np.testing.assert_allclose(_read(path), expected, atol=1e-6)


def test_monochrome1_is_turned_round_and_read_like_its_opposite(write):
  turned = _read(write(PhotometricInterpretation="MONOCHROME1"))
  np.testing.assert_array_equal(np.diff(turned), -np.diff(RAW.astype(float)))
  found = images.read_image(write(PhotometricInterpretation="MONOCHROME1"), 16)
  opposite = images.read_image(write(PixelData=(4095 - RAW).tobytes()), 16)
  np.testing.assert_allclose(found.astype(int), opposite, atol=1)


def test_a_plain_file_is_read_as_the_same_png(write, tmp_path):
  Image.fromarray(RAW).save(tmp_path / "a.png")
  expected = images.read_image(tmp_path / "a.png", 16)
  np.testing.assert_array_equal(images.read_image(write(), 16), expected)


def test_tags_of_the_patient_are_not_read(write):
  import pydicom

  assert "PatientName" in pydicom.dcmread(write())
  assert "PatientName" not in pydicom.dcmread(write(), specific_tags=list(dicom._TAGS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PhotometricInterpretation": "RGB"}, r"is not one grey picture \(RGB"),
        ({"NumberOfFrames": 2}, r"2 frame\(s\)"),
        ({"PixelData": RAW.tobytes()[:-20]}, "is damaged"),
    ],
)
def test_another_picture_is_named(write, changes, message):
  path = write(**changes)
  with pytest.raises(UserError, match=rf"a\.dcm.*{message}"):
    images.read_image(path, 16)


def test_a_file_that_is_no_dicom_is_named(write):
  path = write()
  path.write_bytes(b"this is text")
  with pytest.raises(UserError, match=r"a\.dcm cannot be read"):
    images.read_image(path, 16)


def test_without_pydicom_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  (tmp_path / "a.dcm").touch()
  with pytest.raises(UserError, match=r"pip install 'chexmix-jax\[dicom\]'"):
    images.read_image(tmp_path / "a.dcm", 16)
