"""How large and how small a picture may be before it is decoded."""

import pathlib

from chexmix_jax.errors import BadRow

# A radiograph has 1 to 30 million pixels; a file of a few bytes can claim to hold any number.
_MAX_PIXELS = 80_000_000
_MAX_BYTES = 1 << 29
_MIN_SIDE = 8


def check_file(path: pathlib.Path) -> None:
  """Raises BadRow for an empty file and for one of more than 512 MiB."""
  size = path.stat().st_size
  if size == 0:
    raise BadRow("empty file", f"The image {path} is an empty file; fetch it again.")
  if size > _MAX_BYTES:
    raise BadRow("too large", f"The image {path} is a file of {size:,} bytes; leave it out.")


def check_shape(path: pathlib.Path, width: int, height: int) -> None:
  """Raises BadRow for more than 80 million pixels, and for less than 8 on a side."""
  if width * height > _MAX_PIXELS:
    raise BadRow(
        "too large", f"The image {path} claims to be {width} x {height} pixels; leave it out."
    )
  if min(width, height) < _MIN_SIDE:
    raise BadRow("too small", f"The image {path} is {width} x {height} pixels; leave it out.")
