"""Reading a radiograph exactly as the published package does, and pixel ranges."""

import os
import pathlib

import numpy as np
from PIL import Image

from chexmix_jax.data import dicom
from chexmix_jax.errors import UserError

_WINDOW_PERCENTILES = (1, 99)

SUFFIXES = (".png", ".jpg", ".jpeg", *dicom.SUFFIXES)
"""Of the files that can be read, in lower case."""


def read_image(path: str | os.PathLike[str], size: int) -> np.ndarray:
  """Reads a PNG, JPEG or DICOM file to uint8 (size, size, 3).

  A PNG is windowed to its 1st - 99th percentile, taken over the raw array (16 bits, alpha and
  palette indices included), then made 8-bit RGB; a JPEG is made RGB. The shorter side is resized
  to `size` with Lanczos and the centre is cut out. Bit for bit the published reader's arithmetic
  under numpy 2 (CheXmix, released inference package). What chexmix_jax.data.dicom makes of a DICOM
  file goes the way of a PNG.

  Raises UserError, naming the file, when it is missing, damaged or of another kind.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    raise UserError(
        f"{path} is not a PNG, JPEG or DICOM file by its name; convert it to one of them."
    )
  if not path.is_file():
    raise UserError(f"The image {path} does not exist; mend the path or fetch the file.")
  if suffix in dicom.SUFFIXES:
    return from_raw(dicom.read_dicom(path), size)
  try:
    with Image.open(path, formats=("PNG", "JPEG")) as file:
      file.load()
      # A JPEG has no alpha to drop and nothing to blend on white.
      rgb = from_raw(np.asarray(file), size) if suffix == ".png" else from_jpeg(file, size)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    # Pillow raises SyntaxError for a broken PNG chunk and OSError for a truncated or foreign file.
    raise UserError(
        f"The image {path} cannot be read, it is damaged or not a PNG or JPEG; replace the file."
    ) from error
  return rgb


def from_raw(raw: np.ndarray, size: int) -> np.ndarray:
  """uint8 (size, size, 3) of a raw array (H, W) or (H, W, channels), read as that of a PNG."""
  # The conversion drops an alpha.
  return _centre_square(Image.fromarray(window(raw)).convert("RGB"), size)


def from_jpeg(image: Image.Image, size: int) -> np.ndarray:
  """uint8 (size, size, 3) of a picture that is not windowed, as none of a JPEG is."""
  return _centre_square(image.convert("RGB"), size)


def grey(pixels: np.ndarray) -> np.ndarray:
  """uint8 (H, W) luma of uint8 (H, W, 3); grey files keep their values exactly."""
  return np.asarray(Image.fromarray(pixels).convert("L"))


def window(raw: np.ndarray) -> np.ndarray:
  """uint8 of the same shape: the 1st - 99th percentile of `raw` stretched over 0 .. 255."""
  if raw.dtype == bool:
    raw = raw.astype(np.uint8)
  low, high = np.percentile(raw, _WINDOW_PERCENTILES)
  # The small term belongs to the published arithmetic: it decides bits, and a constant image is 0.
  scaled = (np.clip(raw, low, high) - low) / (high - low + 1e-8) * 255
  return scaled.astype(np.uint8)


def to_float(pixels: np.ndarray) -> np.ndarray:
  """uint8 pixels to float32 in [-1, 1]."""
  return pixels.astype(np.float32) / 127.5 - 1.0


def to_uint8(pixels: np.ndarray) -> np.ndarray:
  """Float pixels in [-1, 1] to uint8: clamped, then truncated as the published decoder does."""
  return ((np.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def _centre_square(image: Image.Image, size: int) -> np.ndarray:
  scale = size / min(image.size)
  width, height = (round(scale * side) for side in image.size)
  image = image.resize((width, height), Image.Resampling.LANCZOS)
  left, top = (width - size) // 2, (height - size) // 2
  return np.asarray(image.crop((left, top, left + size, top + size)))
