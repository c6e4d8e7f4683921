"""Reading a radiograph exactly as the published package does, and pixel ranges."""

import os
import pathlib
import warnings

import numpy as np
from PIL import Image

from chexmix_jax.data import dicom, limits
from chexmix_jax.errors import BadRow

_WINDOW_PERCENTILES = (1, 99)

# Pillow warns of half of what it refuses; chexmix_jax.data.limits refuses that too.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

SUFFIXES = (".png", ".jpg", ".jpeg", *dicom.SUFFIXES)
"""Of the files that can be read, in lower case."""


def read_image(path: str | os.PathLike[str], size: int) -> np.ndarray:
  """Reads a PNG, JPEG or DICOM file to uint8 (size, size, 3).

  A PNG is windowed to its 1st - 99th percentile, taken over the raw array (16 bits, alpha and
  palette indices included), then made 8-bit RGB; a JPEG is made RGB. The shorter side is resized
  to `size` with Lanczos and the centre is cut out. Bit for bit the published reader's arithmetic
  under numpy 2 (CheXmix, released inference package). What chexmix_jax.data.dicom makes of a DICOM
  file goes the way of a PNG.

  Raises BadRow, naming the file, when it is missing, damaged, of another kind, or beyond
  chexmix_jax.data.limits.
  """
  return np.asarray(_read(pathlib.Path(path), size).convert("RGB"))


def read_grey(path: str | os.PathLike[str], size: int) -> np.ndarray:
  """uint8 (size, size): the same as `grey(read_image(path, size))`, in a third of the time."""
  picture = _read(pathlib.Path(path), size)
  return np.asarray(picture) if picture.mode == "L" else grey(np.asarray(picture.convert("RGB")))


def _read(path: pathlib.Path, size: int) -> Image.Image:
  """A square picture; of mode L where all channels of the published reader's would be alike."""
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    raise BadRow(
        "not a picture",
        f"{path} is not a PNG, JPEG or DICOM file by its name; convert it to one of them.",
    )
  if not path.is_file():
    raise BadRow(
        "missing image", f"The image {path} does not exist; mend the path or fetch the file."
    )
  if suffix in dicom.SUFFIXES:
    return _centre_square(Image.fromarray(_window_values(*dicom.read_dicom(path))), size)
  limits.check_file(path)
  try:
    with Image.open(path, formats=("PNG", "JPEG")) as file:
      limits.check_shape(path, *file.size)
      file.load()
      # A JPEG has no alpha to drop and nothing to blend on white.
      picture = Image.fromarray(window(np.asarray(file))) if suffix == ".png" else file
      # Each channel is resized by itself, so three that are alike can be one.
      return _centre_square(picture if picture.mode == "L" else picture.convert("RGB"), size)
  except Image.DecompressionBombError as error:  # Long before our own limit can say so.
    raise BadRow("too large", f"The image {path} is too large; leave it out.") from error
  except (OSError, SyntaxError, ValueError) as error:
    # Pillow raises SyntaxError for a broken PNG chunk and OSError for a truncated or foreign file.
    raise BadRow(
        "damaged image",
        f"The image {path} cannot be read, it is damaged or not a PNG or JPEG; replace the file.",
    ) from error


def from_raw(raw: np.ndarray, size: int) -> np.ndarray:
  """uint8 (size, size, 3) of a raw array (H, W) or (H, W, channels), read as that of a PNG."""
  # The conversion drops an alpha.
  return np.asarray(_centre_square(Image.fromarray(window(raw)).convert("RGB"), size))


def from_jpeg(image: Image.Image, size: int) -> np.ndarray:
  """uint8 (size, size, 3) of a picture that is not windowed, as none of a JPEG is."""
  return np.asarray(_centre_square(image.convert("RGB"), size))


def grey(pixels: np.ndarray) -> np.ndarray:
  """uint8 (H, W) luma of uint8 (H, W, 3); grey files keep their values exactly."""
  return np.asarray(Image.fromarray(pixels).convert("L"))


def window(raw: np.ndarray) -> np.ndarray:
  """uint8 of the same shape: the 1st - 99th percentile of `raw` stretched over 0 .. 255."""
  if raw.dtype == bool:
    raw = raw.astype(np.uint8)
  if raw.dtype in (np.uint8, np.uint16):
    return _window_values(raw, np.arange(int(raw.max()) + 1, dtype=raw.dtype))
  low, high = np.percentile(raw, _WINDOW_PERCENTILES)
  return _stretch(raw, low, high)


def _window_values(numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
  """The window of `values[numbers]`, to the bit, by arithmetic on each of the values once."""
  counts = np.bincount(numbers.reshape(-1), minlength=len(values))
  order = np.argsort(values, kind="stable")
  low, high = (_percentile(values[order], counts[order], p) for p in _WINDOW_PERCENTILES)
  return _stretch(values, low, high)[numbers]


def _stretch(raw: np.ndarray, low: float, high: float) -> np.ndarray:
  # The small term belongs to the published arithmetic: it decides bits, and a constant image is 0.
  scaled = (np.clip(raw, low, high) - low) / (high - low + 1e-8) * 255
  return scaled.astype(np.uint8)


def _percentile(values: np.ndarray, counts: np.ndarray, percentile: float) -> float:
  """np.percentile of rising values, each of which comes as often as `counts` says, to the bit.

  The value between two neighbours in rank, counted from the nearer one, as numpy does it.
  """
  below = np.cumsum(counts)
  rank = (below[-1] - 1) * np.true_divide(percentile, 100)
  first = int(np.floor(rank))
  share = rank - first
  pair = np.searchsorted(below, [first, min(first + 1, below[-1] - 1)], side="right")
  lower, upper = values[pair].tolist()
  if share >= 0.5:
    return upper - (upper - lower) * (1 - share)
  return lower + (upper - lower) * share


def to_float(pixels: np.ndarray) -> np.ndarray:
  """uint8 pixels to float32 in [-1, 1]."""
  return pixels.astype(np.float32) / 127.5 - 1.0


def to_uint8(pixels: np.ndarray) -> np.ndarray:
  """Float pixels in [-1, 1] to uint8: clamped, then truncated as the published decoder does."""
  return ((np.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def _centre_square(image: Image.Image, size: int) -> Image.Image:
  scale = size / min(image.size)
  width, height = (round(scale * side) for side in image.size)
  image = image.resize((width, height), Image.Resampling.LANCZOS)
  left, top = (width - size) // 2, (height - size) // 2
  return image.crop((left, top, left + size, top + size))
