import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data import images
from chexmix_jax.errors import UserError


def test_bit_equal_to_the_published_reader(shared):
  with np.load(shared / "parity" / "images.npz") as golden:
    cases = [key for key in golden.files if "/crop" in key]
    assert len(cases) >= 14
    for key in cases:
      name, crop = key.split("/crop")
      pixels = images.read_image(shared / "parity" / "images" / name, int(crop))
      np.testing.assert_array_equal(pixels, golden[key], err_msg=key)


def test_sixteen_bits_are_windowed_before_they_are_cut_to_eight(tmp_path):
  # All values share their high byte: an 8-bit conversion first would leave one grey.
  raw = (0x1200 + np.arange(256, dtype=np.uint16)).reshape(16, 16)
  Image.fromarray(raw).save(tmp_path / "a.png")
  assert len(np.unique(images.read_image(tmp_path / "a.png", 16))) > 200


def test_to_uint8_truncates_and_clamps():
  pixels = np.array([-1.5, -1.0, 0.999, 1.0, 2.0], np.float32)
  np.testing.assert_array_equal(images.to_uint8(pixels), [0, 0, 254, 255, 255])
  values = np.arange(256, dtype=np.uint8)
  assert np.abs(images.to_uint8(images.to_float(values)).astype(int) - values).max() <= 1
  assert images.to_float(values).dtype == np.float32


def _truncate(path):
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:-1500])


def _flip_a_byte(path):
  Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
  data = bytearray(path.read_bytes())
  data[45] ^= 0xFF
  path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("this is text"),
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: None,
        _truncate,
    ],
    ids=["text", "empty", "folder", "missing", "truncated"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, damage):
  damage(tmp_path / name)
  with pytest.raises(UserError, match=str(tmp_path / name)):
    images.read_image(tmp_path / name, 16)


def test_a_damaged_png_chunk_is_named(tmp_path):
  _flip_a_byte(tmp_path / "a.png")
  with pytest.raises(UserError, match=r"a\.png"):
    images.read_image(tmp_path / "a.png", 16)


def test_another_kind_of_file_is_refused(tmp_path):
  with pytest.raises(UserError, match="convert"):
    images.read_image(tmp_path / "a.tiff", 16)
