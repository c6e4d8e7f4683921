"""Times reading of pictures, beside a plain Pillow loop, and batches of tokens from disk.

Pictures have the size of MIMIC-CXR's; they are generated, noise included, as are the token records.
"""

import argparse
import contextlib
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from chexmix_jax.data import images, records, tokens
from chexmix_jax.data.documents import TEXT_PARTS
from chexmix_jax.data.pipeline import DataConfig, train_iterator
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

# Rows and columns of most pictures of MIMIC-CXR.
SHAPE = (3056, 2544)
CONTEXT, BATCH, GRID = 4608, 32, (32, 32)
STUDIES = 2000
# 2.8 billion parameters on 256 v5e chips of 197 TFLOP/s at half their speed, 6 FLOP a parameter and
# token, and 4 chips a host.
NEEDED = 256 * 197e12 * 0.5 / (6 * 2.8e9) / 64


def _make_pictures(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """A smooth picture with noise, as a JPEG, a PNG of 16 bits and a DICOM file of 12."""
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.uniform(0, 4095, (24, 20)).astype(np.float32))
  smooth = np.asarray(small.resize(SHAPE[::-1], Image.Resampling.BICUBIC))
  raw = np.clip(smooth + rng.normal(0, 40, SHAPE), 0, 4095).astype(np.uint16)
  paths = {name: folder / f"picture.{name}" for name in ("jpg", "png", "dcm")}
  Image.fromarray((raw >> 4).astype(np.uint8)).save(paths["jpg"], quality=95)
  Image.fromarray(raw).save(paths["png"])
  try:
    _write_dicom(paths["dcm"], raw)
  except ImportError:
    del paths["dcm"]
  return paths


def _write_dicom(path: pathlib.Path, raw: np.ndarray) -> None:
  import pydicom
  import pydicom.uid

  file = pydicom.Dataset()
  file.file_meta = pydicom.dataset.FileMetaDataset()
  file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  file.SOPClassUID = file.SOPInstanceUID = pydicom.uid.generate_uid()
  file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
  file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
  file.Rows, file.Columns = raw.shape
  file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
  file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
  file.WindowCenter, file.WindowWidth = 2048, 4096
  file.PixelData = raw.tobytes()
  file.save_as(path, enforce_file_format=True)


def _plain(path: pathlib.Path, size: int) -> np.ndarray:
  """What one would write: the whole picture as RGB, the percentiles of all of its pixels."""
  if path.suffix == ".dcm":
    import pydicom

    raw = pydicom.dcmread(path).pixel_array
  else:
    raw = np.asarray(Image.open(path))
  if path.suffix != ".jpg":
    low, high = np.percentile(raw, (1, 99))
    raw = ((np.clip(raw, low, high) - low) / (high - low + 1e-8) * 255).astype(np.uint8)
  image = Image.fromarray(raw).convert("RGB")
  scale = size / min(image.size)
  image = image.resize(
      (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
  )
  left, top = (image.width - size) // 2, (image.height - size) // 2
  return np.asarray(image.crop((left, top, left + size, top + size)).convert("L"))


def _seconds(function: Callable[[], object], rounds: int) -> list[float]:
  found = []
  for _ in range(rounds):
    start = time.perf_counter()
    function()
    found.append(time.perf_counter() - start)
  return found


def _time_pictures(folder: pathlib.Path, size: int, rounds: int) -> None:
  for name, path in _make_pictures(folder).items():
    if not np.array_equal(images.read_grey(path, size), _plain(path, size)):
      raise UserError(f"The two ways of reading a {name} differ; report this.")
    ours, plain = [], []
    for _ in range(rounds):  # In turn, so that both see the same machine.
      ours += _seconds(functools.partial(images.read_grey, path, size), 1)
      plain += _seconds(functools.partial(_plain, path, size), 1)
    ratio = statistics.median(b / a for a, b in zip(ours, plain, strict=True))
    print(
        f"{name}, {SHAPE[1]} x {SHAPE[0]} to {size} pixels, one core:"
        f" {1 / statistics.median(ours):.1f} images/s, plain Pillow"
        f" {1 / statistics.median(plain):.1f}, ratio {ratio:.2f}"
    )


def _write_tokens(folder: pathlib.Path) -> None:
  """Studies of a picture of 1,024 codes and a report of 23 - 175 tokens."""
  rng = np.random.default_rng(0)
  vocabulary = Vocabulary.published()
  facts = {
      "vocabulary": vocabulary.to_dict(), "image_tokenizer": "none", "text_tokenizer": "none",
      "grid": list(GRID),
  }  # fmt: skip
  (shard,) = records.cut_shards({"train": STUDIES}, STUDIES)
  writer = records.RecordWriter(folder, tokens.KIND, facts, tokens.features(1024), [shard])
  index: dict[str, list[int]] = {name: [] for name in tokens.INDEXED}

  def make():
    for number in range(STUDIES):
      report = rng.integers(0, vocabulary.num_text, rng.integers(23, 176)).astype(np.int32)
      lengths = {"pictures": 1, "frontal": 1, "report": len(report)}
      for name in tokens.INDEXED:
        index[name].append(lengths.get(name, 0))
      texts = {f"{name}_{what}": np.zeros(0, np.int32)
               for name in TEXT_PARTS for what in ("ids", "sentences")}  # fmt: skip
      yield {
          "study_id": f"s{number}", "patient_id": f"p{number}",
          "codes": rng.integers(0, vocabulary.num_codes, (1, 1024)).astype(np.int32),
          "views": np.zeros(1, np.int8), "labels": np.zeros(14, np.int8), **texts,
          "report_ids": report, "report_sentences": np.array([len(report)], np.int32),
      }  # fmt: skip

  writer.write(shard, make(), {"refused": [], "index": index})
  writer.finish(facts)


def _time_tokens(folder: pathlib.Path, rounds: int) -> None:
  _write_tokens(folder / "tokens")
  config = DataConfig(str(folder / "tokens"), CONTEXT, BATCH)
  with contextlib.closing(train_iterator(config)) as iterator:
    next(iterator)
    used: list[int] = []

    def take() -> None:
      used.append(int((next(iterator)["segment_ids"] > 0).sum()))

    seconds = _seconds(take, rounds)
  rate = sum(used) / sum(seconds)
  fill = sum(used) / (len(used) * BATCH * CONTEXT)
  print(
      f"batches of {BATCH} x {CONTEXT} tokens from disk, one process:"
      f" {len(seconds) / sum(seconds):.1f} batches/s, {rate:,.0f} tokens/s, {fill:.1%} filled;"
      f" {rate / NEEDED:.0f} times what a host of a v5e-256 needs ({NEEDED:,.0f})"
  )


def main(argv: list[str]) -> None:
  """Prints images a second for each kind of file, and tokens a second."""
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.bench data", description=__doc__)
  parser.add_argument("--size", type=int, default=512, help="side of the pictures in pixels")
  parser.add_argument("--rounds", type=int, default=10, help="pictures of a kind, and batches")
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    _time_pictures(pathlib.Path(folder), args.size, args.rounds)
    _time_tokens(pathlib.Path(folder), args.rounds)
