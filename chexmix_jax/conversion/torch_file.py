"""Reads and writes the files of `torch.save`, without torch and without running a pickle.

The pickle's instructions are interpreted here, a few dozen of them, and can only build plain
containers, numbers, text and tensors. Whatever else a file asks for is refused by name.
"""

import dataclasses
import io
import os
import pathlib
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from chexmix_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_DTYPES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}


@dataclasses.dataclass(frozen=True)
class _Name:
  """A class or function that the pickle names; never looked up."""

  name: str


@dataclasses.dataclass
class _Storage:
  """A flat array that tensors are views of; its numbers may be read after the pickle."""

  key: str
  dtype: np.dtype
  count: int
  array: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage, in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read_torch_file(path: str | os.PathLike[str]) -> Any:
  """The saved object, with numpy arrays for tensors; shared storages are shared by the arrays.

  Both the zip form and the older one are read. float16 stays float16 and bfloat16 is ml_dtypes'.
  Raises UserError for a file that cannot be read, is no such file, is damaged, or holds anything
  but plain containers, numbers, text and tensors.
  """
  path = pathlib.Path(path)
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        return _read_zip(path, archive)
    with path.open("rb") as file:
      return _read_legacy(path, file)
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
  except _DAMAGE as error:
    raise UserError(
        f"{path} is not a file of torch.save, or is damaged; download or save it again."
    ) from error


# What an interpreter of bytes that make no sense runs into.
_DAMAGE = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, struct.error,
    zipfile.BadZipFile, EOFError, MemoryError, RuntimeError,
)  # fmt: skip


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """The tensors by name of a file that holds a state dict, by itself or as Lightning keeps it."""
  found = read_torch_file(path)
  if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
    found = found["state_dict"]
  if not isinstance(found, Mapping) or not all(isinstance(v, np.ndarray) for v in found.values()):
    raise UserError(f"{path} holds no state dict (tensors by name); name the file of a checkpoint.")
  return dict(found)


def _read_zip(path: pathlib.Path, archive: zipfile.ZipFile) -> Any:
  names = archive.namelist()
  (pickled,) = [name for name in names if name.split("/", 1)[-1] == "data.pkl"]
  folder = pickled.removesuffix("data.pkl")
  if f"{folder}byteorder" in names and _stored(archive, f"{folder}byteorder") != b"little":
    raise UserError(f"{path} was written on a big-endian machine; save it again on another one.")
  storages: dict[str, _Storage] = {}
  found = _Interpreter(path, storages).run(io.BytesIO(_stored(archive, pickled)))
  for storage in storages.values():
    data = _stored(archive, f"{folder}data/{storage.key}")
    storage.array = np.frombuffer(data, storage.dtype, storage.count)
  return _with_arrays(found)


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
  """An entry that is not compressed; torch's never are, so nothing can unfold beyond the file."""
  entry = archive.getinfo(name)
  if entry.compress_type != zipfile.ZIP_STORED:
    raise ValueError("compressed entry")
  return archive.read(entry)


def _read_legacy(path: pathlib.Path, file: IO[bytes]) -> Any:
  storages: dict[str, _Storage] = {}
  interpreter = _Interpreter(path, storages)
  if interpreter.run(file) != _LEGACY_MAGIC or interpreter.run(file) != _LEGACY_PROTOCOL:
    raise ValueError("no legacy header")
  if not interpreter.run(file)["little_endian"]:
    raise UserError(f"{path} was written on a big-endian machine; save it again on another one.")
  found = interpreter.run(file)
  for key in interpreter.run(file):
    storage = storages[key]
    (count,) = struct.unpack("<q", file.read(8))
    if count != storage.count:
      raise ValueError("storage of another size")
    data = file.read(count * storage.dtype.itemsize)
    storage.array = np.frombuffer(data, storage.dtype, count)
  return _with_arrays(found)


def _with_arrays(found: Any) -> Any:
  """The same object with an array for every tensor."""
  if isinstance(found, _Tensor):
    return _view(found)
  if isinstance(found, dict):
    return {key: _with_arrays(value) for key, value in found.items()}
  if isinstance(found, (list, tuple, set)):
    return type(found)(_with_arrays(value) for value in found)
  return found


def _view(tensor: _Tensor) -> np.ndarray:
  array, item = tensor.storage.array, tensor.storage.dtype.itemsize
  if array is None:
    raise ValueError("storage without numbers")
  if min((*tensor.shape, *tensor.strides, tensor.offset), default=0) < 0:
    raise ValueError("negative shape, stride or offset")
  if 0 in tensor.shape:
    return np.zeros(tensor.shape, tensor.storage.dtype)
  last = tensor.offset + sum(
      (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
  )
  if last >= tensor.storage.count:
    raise ValueError("tensor beyond its storage")
  return np.lib.stride_tricks.as_strided(
      array[tensor.offset :], tensor.shape, [stride * item for stride in tensor.strides],
      writeable=False,
  )  # fmt: skip


def write_state_dict(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
  """Writes float32 arrays as Lightning keeps them: `torch.load(path)["state_dict"]`."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", _pickled_state_dict(tensors))
    archive.writestr("archive/byteorder", "little")
    for key, array in enumerate(tensors.values()):
      archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array, "<f4").tobytes())
    archive.writestr("archive/version", "3\n")


def _pickled_state_dict(tensors: Mapping[str, np.ndarray]) -> bytes:
  """The instructions that build dict(state_dict=dict of tensors), each on a storage of its own."""

  def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded

  def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)

  def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"

  def tensor(key: int, array: np.ndarray) -> bytes:
    strides = [int(np.prod(array.shape[i + 1 :], dtype=np.int64)) for i in range(array.ndim)]
    storage = tuple_of(
        text("storage"), b"ctorch\nFloatStorage\n", text(str(key)), text("cpu"), number(array.size)
    )
    arguments = tuple_of(
        storage + b"Q",
        number(0),
        tuple_of(*map(number, array.shape)),
        tuple_of(*map(number, strides)),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"

  items = [
      text(name) + tensor(key, array) for key, (name, array) in enumerate(tensors.items())
  ]
  return b"\x80\x02}" + text("state_dict") + b"}(" + b"".join(items) + b"us."


class _Interpreter:
  """Runs the instructions of pickles that share storages."""

  def __init__(self, path: pathlib.Path, storages: dict[str, _Storage]):
    self._path = path
    self._storages = storages
    self._calls: dict[str, Callable[..., Any]] = {
        "collections OrderedDict": lambda items=(): dict(items),
        "torch._utils _rebuild_tensor_v2": self._tensor,
        "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
        # How protocol 2 writes sets and bytes.
        "__builtin__ set": lambda items=(): set(items),
        "_codecs encode": lambda text, _: text.encode("latin1"),
        "torch Size": lambda sizes=(): tuple(sizes),
    }

  def run(self, file: IO[bytes]) -> Any:
    """The object of the pickle that begins here; leaves the file where it ends."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
      nonlocal stack
      items, stack = stack, marks.pop()
      return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
      name = opcode.name
      if name == "STOP":
        return stack.pop()
      if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
      elif name in _LITERALS:
        stack.append(argument)
      elif name in _EMPTY:
        stack.append(_EMPTY[name]())
      elif name == "MARK":
        marks.append(stack)
        stack = []
      elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
        memo[int(argument)] = stack[-1]
      elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
      elif name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[int(argument)])
      elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        size = int(name[-1])
        stack[-size:] = [tuple(stack[-size:])]
      elif name in ("TUPLE", "LIST"):
        items = above_mark()
        stack.append(tuple(items) if name == "TUPLE" else items)
      elif name in ("APPEND", "APPENDS"):
        items = above_mark() if name == "APPENDS" else [stack.pop()]
        _expect(stack[-1], list).extend(items)
      elif name == "ADDITEMS":
        items = above_mark()
        _expect(stack[-1], set).update(items)
      elif name in ("SETITEM", "SETITEMS"):
        items = above_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
        _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
      elif name == "DICT":
        items = above_mark()
        stack.append(dict(zip(items[::2], items[1::2], strict=True)))
      elif name == "GLOBAL":
        stack.append(self._named(argument))
      elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(self._named(f"{module} {attribute}"))
      elif name == "REDUCE":
        arguments, function = _expect(stack.pop(), tuple), stack.pop()
        stack.append(self._call(function, arguments))
      elif name == "BUILD":
        stack.pop()  # What an OrderedDict carries besides its items.
        _expect(stack[-1], dict)
      elif name == "BINPERSID":
        stack.append(self._storage(stack.pop()))
      elif name not in ("PROTO", "FRAME"):
        raise UserError(f"{self._path} holds the pickle instruction {name}, which is refused.")
    raise EOFError("no STOP")

  def _named(self, name: str) -> _Name:
    if name not in self._calls and name not in _DTYPES:
      raise UserError(
          f"{self._path} asks for {name.replace(' ', '.')}, which is refused: only tensors and"
          " plain containers are read. Save its state dict alone."
      )
    return _Name(name)

  def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
    return self._calls[_expect(function, _Name).name](*arguments)

  def _storage(self, identity: Any) -> _Storage:
    kind, storage_type, key, _, count, *view = identity
    if kind != "storage" or any(part is not None for part in view):
      raise UserError(f"{self._path} holds views of storages, a form from before torch 0.4.")
    dtype = _DTYPES[_expect(storage_type, _Name).name]
    storage = self._storages.setdefault(key, _Storage(key, dtype, count))
    if (storage.dtype, storage.count) != (dtype, count):
      raise ValueError("one storage with two types")
    return storage

  def _tensor(self, storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(_expect(storage, _Storage), offset, tuple(shape), tuple(strides))


def _expect(value: Any, kind: type) -> Any:
  if not isinstance(value, kind):
    raise TypeError(f"{type(value)} where {kind} should be")
  return value


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_LITERALS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
})  # fmt: skip
