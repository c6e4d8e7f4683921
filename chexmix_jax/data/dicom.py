"""Reading the picture of a DICOM file; needs pydicom, which the extra `dicom` brings."""

import importlib.util
import pathlib

import numpy as np

from chexmix_jax.data import limits
from chexmix_jax.errors import BadRow, UserError

SUFFIXES = (".dcm", ".dicom")
"""Of DICOM files, in lower case."""

# All that is read of a file: names, dates and other tags of a patient stay on the disk.
_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ModalityLUTSequence",
    "RescaleIntercept", "RescaleSlope", "VOILUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
]  # fmt: skip


def check_installed() -> None:
  """Raises UserError, with the command that mends it, where pydicom is missing."""
  if importlib.util.find_spec("pydicom") is None:
    raise UserError(
        "DICOM files are read by pydicom, which is not installed; run pip install"
        " 'chexmix-jax[dicom]', or convert the files to PNG."
    )


def read_dicom(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """The picture as it is meant to be seen: `values[numbers]`, in the units of the file's window.

  Gives numbers (H, W), not negative, and values float64 (V,), one for each that a pixel can have:
  there are far fewer of them than pixels.

  Modality LUT, then VOI LUT or (the first) window; MONOCHROME1 is turned round, so that more is
  brighter. Nothing is cut to 8 bits. Raises BadRow that names a file that is damaged, in colour, of
  several frames, beyond chexmix_jax.data.limits, or compressed in a way that pydicom cannot read.
  """
  check_installed()
  limits.check_file(path)
  import pydicom
  import pydicom.pixels

  try:
    file = pydicom.dcmread(path, specific_tags=list(_TAGS))
    kind, frames = file.PhotometricInterpretation, int(file.get("NumberOfFrames") or 1)
    if kind not in ("MONOCHROME1", "MONOCHROME2") or frames != 1:
      raise BadRow(
          "not one grey picture",
          f"The image {path} is not one grey picture ({kind}, {frames} frame(s)); leave it out.",
      )
    limits.check_shape(path, int(file.Columns), int(file.Rows))
    values, numbers = _distinct(file.pixel_array)
    values = pydicom.pixels.apply_modality_lut(values, file)
    values = np.asarray(pydicom.pixels.apply_voi_lut(values, file), np.float64)
  except BadRow:
    raise
  except (RuntimeError, NotImplementedError) as error:
    raise BadRow(
        "compression",
        f"The image {path} cannot be decompressed; run pip install python-gdcm, which knows more"
        " kinds than pydicom by itself, or replace the file.",
    ) from error
  except Exception as error:  # pydicom has no error of its own for a damaged file.
    raise BadRow(
        "damaged image",
        f"The image {path} cannot be read, it is damaged or no DICOM picture"
        f" ({type(error).__name__}); replace the file.",
    ) from error
  # Around which value it is turned does not matter: the window that follows is relative.
  return numbers, -values if kind == "MONOCHROME1" else values


def _distinct(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Values and numbers with values[numbers] = stored; of 16 bits without sorting the pixels."""
  lowest, highest = int(stored.min()), int(stored.max())
  if highest - lowest > 1 << 16:
    values, numbers = np.unique(stored, return_inverse=True)
    return values, numbers.reshape(stored.shape)
  values = np.arange(lowest, highest + 1).astype(stored.dtype)
  return values, np.subtract(stored, lowest, dtype=np.int64)
