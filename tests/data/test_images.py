import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from chexmix_jax.data import images
from chexmix_jax.errors import BadRow, UserError


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


@given(
    st.one_of(
        arrays(np.uint8, st.integers(1, 60)), arrays(np.uint16, st.integers(1, 60)),
        arrays(np.uint16, st.integers(1, 300), elements=st.integers(0, 3)),
    )
)  # fmt: skip
def test_the_window_is_the_published_arithmetic_to_the_bit(raw):
  low, high = np.percentile(raw, (1, 99))
  expected = ((np.clip(raw, low, high) - low) / (high - low + 1e-8) * 255).astype(np.uint8)
  np.testing.assert_array_equal(images.window(raw), expected)


@pytest.mark.parametrize("shape", [(40, 50), (50, 40, 3), (50, 40, 4), (40, 40, 2)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_read_grey_is_the_luma_of_what_is_read(tmp_path, shape, name):
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  picture = Image.fromarray(pixels)
  if name == "a.jpg" and len(shape) == 3:
    picture = picture.convert("RGB")
  picture.save(tmp_path / name)
  expected = images.grey(images.read_image(tmp_path / name, 16))
  np.testing.assert_array_equal(images.read_grey(tmp_path / name, 16), expected)


def _claim(path, width, height):
  """A PNG of a few bytes that claims to be of this size."""
  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
  path.write_bytes(
      b"\x89PNG\r\n\x1a\n"
      + b"".join(
          struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
          for kind, data in chunks
      )
  )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height", "kind"),
    [(9_000, 9_000, "too large"), (12_000, 11_000, "too large"), (1, 1, "too small"),
     (3000, 7, "too small")],
)  # fmt: skip
def test_a_picture_of_an_impossible_size_is_refused_before_it_is_decoded(
    tmp_path, width, height, kind
):
  _claim(tmp_path / "a.png", width, height)
  with pytest.raises(BadRow, match=f"{width} x {height} pixels") as refused:
    images.read_image(tmp_path / "a.png", 16)
  assert refused.value.kind == kind


def test_a_picture_that_pillow_itself_refuses_is_too_large(tmp_path):
  _claim(tmp_path / "a.png", 60_000, 60_000)
  with pytest.raises(BadRow, match=r"a\.png is too large"):
    images.read_image(tmp_path / "a.png", 16)


def test_a_file_of_an_impossible_length_is_refused(tmp_path):
  with open(tmp_path / "a.png", "wb") as file:
    file.truncate(1 << 30)  # Takes no room on the disk.
  with pytest.raises(BadRow, match="1,073,741,824 bytes"):
    images.read_image(tmp_path / "a.png", 16)
