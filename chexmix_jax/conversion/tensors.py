"""Tensors by name: read lazily from safetensors files, written in shards, and checked."""

import json
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import safetensors

from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole

Shape = tuple[int, ...]

INDEX = "model.safetensors.index.json"
# By safetensors' names.
_DTYPES = {"F32": np.dtype("<f4"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2")}


class SafetensorsFiles(Mapping[str, np.ndarray]):
  """The tensors of a `.safetensors` file, of an `.index.json`, or of a folder that holds either.

  A tensor is read when it is asked for, and the file let go again, so that what was read before
  does not stay in memory.

  Attributes:
    shapes: of all tensors, by name.
    files: that were found.
  """

  def __init__(self, path: pathlib.Path):
    self.shapes: dict[str, Shape] = {}
    self._file_of: dict[str, pathlib.Path] = {}
    self.files = _files(path)
    for file in self.files:
      try:
        with safetensors.safe_open(file, "numpy") as opened:
          for name in opened.keys():  # noqa: SIM118 - it is no mapping.
            self.shapes[name] = tuple(opened.get_slice(name).get_shape())
            self._file_of[name] = file
      except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{file} is not a safetensors file, or is damaged ({error}); download it again."
        ) from error

  def __getitem__(self, name: str) -> np.ndarray:
    with safetensors.safe_open(self._file_of[name], "numpy") as opened:
      return opened.get_tensor(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  if path.is_dir():
    candidates = [path / INDEX, path / "model.safetensors"]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
      raise UserError(f"{path} holds no model.safetensors and no {INDEX}; name another folder.")
    path = found
  if not path.exists():
    raise UserError(f"{path} is not there; name a .safetensors file, its index, or their folder.")
  if path.suffix != ".json":
    return [path]
  try:
    names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path} is not an index of safetensors files; download it again.") from error
  files = [path.parent / pathlib.PurePath(name).name for name in names]
  for file in files:
    if not file.exists():
      raise UserError(f"{file} is not there, though {path.name} names it; download it too.")
  return files


def check_shapes(what: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
  """Raises a UserError that lists every missing, unexpected and misshapen tensor of `what`."""
  missing = sorted(set(expected) - set(found))
  extra = sorted(set(found) - set(expected))
  other = [
      f"{name} {found[name]} instead of {shape}"
      for name, shape in expected.items()
      if name in found and found[name] != shape
  ]
  parts = [
      f"{kind}: {', '.join(names)}"
      for kind, names in (("missing", missing), ("unexpected", extra), ("of another shape", other))
      if names
  ]
  if parts:
    raise UserError(
        f"{what} does not fit the model, and nothing was written; {'; '.join(parts)}. Name the"
        " files of one and the same model."
    )


Source = tuple[str, Shape, Callable[[], np.ndarray]]
"""Name, shape, and a function that gives the numbers when they are written."""


def write_safetensors(
    folder: pathlib.Path, tensors: Sequence[Source], dtype: np.dtype, shard_bytes: int = 5 * 10**9
) -> None:
  """Writes model.safetensors, or shards of at most `shard_bytes` and their index, as transformers.

  One tensor is in memory at a time. A tensor that is larger than a shard gets one of its own.
  """
  shards: list[list[Source]] = [[]]
  room = shard_bytes
  for source in tensors:
    size = _size(source[1], dtype)
    if size > room and shards[-1]:
      shards.append([])
      room = shard_bytes
    shards[-1].append(source)
    room -= size
  if len(shards) == 1:
    write_file(folder / "model.safetensors", shards[0], dtype)
    return
  weight_map: dict[str, str] = {}
  for number, shard in enumerate(shards, 1):
    name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    write_file(folder / name, shard, dtype)
    weight_map |= {source[0]: name for source in shard}
  total = sum(_size(shape, dtype) for _, shape, _ in tensors)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  write_whole(folder / INDEX, json.dumps(index, indent=2))


def write_file(path: pathlib.Path, tensors: Iterable[Source], dtype: np.dtype) -> None:
  """One safetensors file, a tensor at a time (the library wants all of them at once)."""
  tensors = list(tensors)
  name_of = {kind: name for name, kind in _DTYPES.items()}
  header: dict[str, object] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, shape, _ in tensors:
    end = offset + _size(shape, dtype)
    header[name] = {"dtype": name_of[dtype], "shape": shape, "data_offsets": [offset, end]}
    offset = end
  encoded = json.dumps(header).encode()
  encoded += b" " * (-len(encoded) % 8)  # The numbers begin at a multiple of 8.
  with path.open("wb") as file:
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for _, shape, read in tensors:
      file.write(np.asarray(read(), dtype).reshape(shape).tobytes())


def _size(shape: Shape, dtype: np.dtype) -> int:
  return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
