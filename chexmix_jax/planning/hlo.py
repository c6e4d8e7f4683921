"""What a compiled program does on one device, read from its text: operations, bytes, collectives.

XLA's own count takes the body of a loop once, whatever its number of turns; here it counts as often
as it runs. Operations are those of matrix products and of splash attention, two for each
multiply-add that is computed, recomputation included. Bytes are what each operation outside of
fusions reads from and writes to memory; of slices only the slice, and nothing of arrays that the
compiler keeps in a TPU's vector memory.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional",
    "call", "iota", "partition-id", "replica-id", "after-all", "optimization-barrier",
    "custom-call-done", "copy-done", "async-done", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "slice-done", "async-update",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_LANES = 128  # A head of fewer numbers takes as long in a TPU's matrix unit.


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of collective over one group of devices, with all that it moves.

  Attributes:
    kind: one of COLLECTIVES; an all-reduce of which each device keeps a part is a reduce-scatter.
    group: numbers of the devices of one group, in the order of the mesh.
    count: how often it runs.
    bytes: what a device sends in all, in a ring: (n-1)/n of the larger side, of an all-reduce
      twice that.
  """

  kind: str
  group: tuple[int, ...]
  count: float
  bytes: float


@dataclasses.dataclass(frozen=True)
class Totals:
  """Of one run of a program on one device."""

  flops: float
  bytes: float
  collectives: tuple[Collective, ...]


@dataclasses.dataclass
class _Instruction:
  name: str
  op: str
  shape: str  # As text, a tuple's too.
  operands: list[str]
  attributes: str
  literal: str  # What stands in the brackets: a constant's value, a parameter's number.


def totals(text: str, num_devices: int) -> Totals:
  """Reads `compiled.as_text()` of a program for `num_devices` devices."""
  reader = _Reader(text, num_devices)
  flops, moved, collectives = reader.of_computation(reader.entry)
  return Totals(flops, moved, tuple(
      Collective(kind, group, count, size)
      for (kind, group), (count, size) in sorted(collectives.items())
  ))  # fmt: skip


def _arrays(shape: str, in_memory: bool = False) -> list[tuple[str, list[int]]]:
  """Types and dimensions of the arrays of a shape; `in_memory` leaves vector memory's out."""
  return [
      (dtype, [int(n) for n in dims.split(",") if n])
      for dtype, dims, layout in _SHAPE.findall(shape)
      if dtype in _BYTES and not (in_memory and "S(1)" in (layout or ""))
  ]


def _size(shape: str, in_memory: bool = True) -> float:
  return sum(_BYTES[dtype] * math.prod(dims) for dtype, dims in _arrays(shape, in_memory))


def _close(text: str, start: int) -> int:
  """Where the bracket that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i
  return len(text) - 1


def _parse(line: str) -> _Instruction | None:
  found = _INSTRUCTION.match(line)
  if not found:
    return None
  name, rest = found.groups()
  if rest.startswith("("):
    end = _close(rest, 0) + 1
  else:
    shape = re.match(r"[\w]+\[[\d,]*\](\{[^}]*\})?", rest)
    if not shape:
      return None
    end = shape.end()
  op = re.match(r"\s+([\w\-]+)\(", rest[end:])
  if not op:
    return None
  start = end + op.end() - 1
  stop = _close(rest, start)
  operands = re.findall(r"%([\w.\-]+)", rest[start:stop])
  return _Instruction(name, op[1], rest[:end], operands, rest[stop + 1 :], rest[start + 1 : stop])


class _Reader:
  """A program's computations, and what each of them does."""

  def __init__(self, text: str, num_devices: int):
    self._num_devices = num_devices
    self.entry = ""
    self._computations: dict[str, dict[str, _Instruction]] = {}
    current: dict[str, _Instruction] | None = None
    for line in text.split("\n"):
      head = re.match(r"^(ENTRY )?%?([\w.\-]+)\s+\(.*\{\s*$", line)
      if head:
        current = self._computations[head[2]] = {}
        if head[1]:
          self.entry = head[2]
      elif line.startswith("}"):
        if not line.startswith("}}"):
          current = None
      elif current is not None and (instruction := _parse(line)):
        current[instruction.name] = instruction
    self.of_computation = functools.cache(self._of_computation)

  def _of_computation(self, name: str):
    flops = moved = 0.0
    collectives: dict = collections.defaultdict(lambda: [0.0, 0.0])

    def add(inner, times=1.0):
      nonlocal flops, moved
      flops += times * inner[0]
      moved += times * inner[1]
      for key, (count, size) in inner[2].items():
        collectives[key][0] += times * count
        collectives[key][1] += times * size

    body = self._computations[name]
    for one in body.values():
      kind = one.op.removesuffix("-start")
      if one.op == "while":
        turns = self._turns(_called(one, "condition"))
        add(self.of_computation(_called(one, "body")), turns)
      elif one.op in ("call", "async-start", "conditional"):
        called = re.findall(r"(?:to_apply|calls|_computation)=%?([\w.\-]+)", one.attributes)
        called += re.findall(r"%([\w.\-]+)", _braces(one.attributes, "branch_computations="))
        for inner in called[:1] if one.op != "conditional" else called:
          add(self.of_computation(inner))
      elif kind in COLLECTIVES:
        self._add_collective(collectives, kind, one, body)
      elif one.op == "fusion":
        inner = self.of_computation(_called(one, "calls"))
        flops += inner[0]
        scatters = "all-reduce-scatter" in _called(one, "calls")
        for (inner_kind, group), (count, size) in inner[2].items():
          key = ("reduce-scatter" if scatters else inner_kind, group)
          collectives[key][0] += count
          collectives[key][1] += size / 2 if scatters else size
      flops += self._flops(one, body)
      moved += self._moved(one, body)
    return flops, moved, dict(collectives)

  def _turns(self, condition: str) -> int:
    """How often a loop runs that counts from 0 (or up to 1 less) to a constant."""
    constants = [
        int(found[1])
        for one in self._computations[condition].values()
        if one.op == "constant" and (found := re.fullmatch(r"(\d+)", one.literal))
    ]
    return max(constants, default=1)

  def _flops(self, one: _Instruction, body: dict[str, _Instruction]) -> float:
    if one.op == "convolution":
      return _convolution_flops(one, [body[name].shape for name in one.operands])
    if one.op == "dot":
      (_, lhs), *_ = _arrays(body[one.operands[0]].shape)
      contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
      depth = math.prod(lhs[int(i)] for i in (contracted[1] if contracted else "").split(",") if i)
      return 2.0 * depth * sum(math.prod(dims) for _, dims in _arrays(one.shape))
    if one.op == "custom-call" and "splash_mha" in one.name:
      # Products of T x T x K: q·k and weights·v; with q·k again dp and dq; and dp, dv and dk.
      products = 2 if "fwd" in one.name else 3 if "_dq" in one.name else 4
      *rows, length, width = max((d for _, d in _arrays(one.shape) if len(d) >= 3), key=math.prod)
      rows = rows[-2:]
      return products * math.prod(rows) * length * length * max(width, _LANES)
    return 0.0

  def _moved(self, one: _Instruction, body: dict[str, _Instruction]) -> float:
    """Bytes read and written, but for what is counted inside."""
    if one.op in _FREE or one.op.removesuffix("-start") in COLLECTIVES or one.op == "async-start":
      return 0.0
    if one.op in _SLICES:
      return 2 * _size(one.shape)
    if one.op == "dynamic-update-slice":
      return 2 * _size(body[one.operands[1]].shape)
    if one.op != "fusion":
      reads = sum(_size(body[name].shape) for name in one.operands if name in body)
      return _size(one.shape) + reads
    name = _called(one, "calls")
    moved = sum(
        min(self._read(name, number), _size(body[operand].shape))
        for number, operand in enumerate(one.operands)
    )
    # What is updated in place is neither read nor written as a whole.
    written = _size(one.shape)
    for update in self._computations[name].values():
      if update.op == "dynamic-update-slice":
        written += _size(self._computations[name][update.operands[1]].shape) - _size(update.shape)
    return moved + max(written, 0.0)

  def _read(self, name: str, number: int) -> float:
    """Bytes that a fused computation reads of its parameter."""
    inner = self._computations[name]
    users = collections.defaultdict(list)
    for user in inner.values():
      for position, operand in enumerate(user.operands):
        users[operand].append((position, user))

    def read(value: str) -> float:
      whole, moved = _size(inner[value].shape), 0.0
      for position, user in users[value]:
        if user.op == "bitcast":
          moved += read(user.name)
        elif user.op in _SLICES:
          moved += _size(user.shape)
        elif user.op == "fusion":
          moved += self._read(_called(user, "calls"), position)
        elif user.op != "dynamic-update-slice" or position > 0:
          moved += whole
      return min(moved, whole)

    return next(
        read(each.name)
        for each in inner.values()
        if each.op == "parameter" and int(each.literal) == number
    )

  def _add_collective(self, collectives, kind, one, body) -> None:
    group = self._group(one.attributes)
    size = len(group)
    if kind == "collective-permute":
      sent = sum(_size(body[name].shape, False) for name in one.operands[:1])
    else:
      outputs = _size(one.shape, False)
      operands = sum(_size(body[name].shape, False) for name in one.operands if name in body)
      if one.op.endswith("-start"):  # A tuple of what goes in and what comes out.
        outputs = max(outputs - operands, operands)
      sent = (size - 1) / size * max(outputs, operands) * (2 if kind == "all-reduce" else 1)
    if size > 1:
      collectives[(kind, group)][0] += 1
      collectives[(kind, group)][1] += sent

  def _group(self, attributes: str) -> tuple[int, ...]:
    """The devices of the first group of a collective, in any of XLA's three ways to write them."""
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
      return tuple(sorted((int(found[1]), int(found[2]))))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", attributes):
      axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
      ids = np.arange(self._num_devices)
      if order := re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", found[2]):
        ids = _iota(order[1], order[2])
      grid = ids.reshape(list(axes.values()))
      names = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[3])
      # A part of an axis, 'a':(before)size, is an axis of its own.
      split, sub = [], {}
      for name, size in axes.items():
        parts = [(int(b), int(s)) for n, b, s in names if n == name and s]
        if not parts:
          split.append(size)
          sub[(name, "")] = len(split) - 1
          continue
        before, inner = parts[0]
        split += [before, inner, size // (before * inner)]
        sub[(name, "part")] = len(split) - 2
      grid = grid.reshape(split)
      chosen = [sub[(n, "part" if s else "")] for n, _, s in names]
      grid = np.moveaxis(grid, chosen, range(-len(chosen), 0))
      count = math.prod(split[i] for i in chosen)
      return tuple(int(i) for i in grid.reshape(-1, count)[0])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
      return tuple(int(i) for i in found[1].split(","))
    pattern = r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(pattern, attributes):
      return tuple(int(i) for i in _iota(found[3], found[4]).reshape(-1, int(found[2]))[0])
    return tuple(range(self._num_devices))


def _iota(dims: str, transpose: str | None) -> np.ndarray:
  sizes = [int(n) for n in dims.split(",")]
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  if transpose:
    ids = ids.transpose([int(n) for n in transpose.split(",")])
  return ids.reshape(-1)


def _called(one: _Instruction, attribute: str) -> str:
  found = re.search(attribute + r"=%?([\w.\-]+)", one.attributes)
  return found[1] if found else ""


def _braces(text: str, before: str) -> str:
  found = re.search(re.escape(before) + r"\{([^}]*)\}", text)
  return found[1] if found else ""


def _convolution_flops(one: _Instruction, operands: Sequence[str]) -> float:
  """Two for every multiply-add; those with padding do not count."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
  ((_, output),) = _arrays(one.shape)
  (_, lhs), (_, rhs) = (_arrays(shape)[0] for shape in operands[:2])
  assert labels is not None
  lhs_labels, rhs_labels, out_labels = labels.groups()
  window = _braces(one.attributes, "window=")

  def setting(name: str, default: str) -> list[str]:
    found = re.search(rf"\b{name}=([\dx_\-]+)", window)
    count = sum(label.isdigit() for label in out_labels)
    return found[1].split("x") if found else [default] * count

  pads, strides = setting("pad", "0_0"), setting("stride", "1")
  lhs_dilation, rhs_dilation = setting("lhs_dilate", "1"), setting("rhs_dilate", "1")
  products = 2.0 * rhs[rhs_labels.index("i")] * output[out_labels.index("b")]
  products *= output[out_labels.index("f")]
  for i, pad in enumerate(pads):
    size, kernel = lhs[lhs_labels.index(str(i))], rhs[rhs_labels.index(str(i))]
    places = np.arange(output[out_labels.index(str(i))])[:, None] * int(strides[i])
    at = places + np.arange(kernel) * int(rhs_dilation[i]) - int(pad.split("_")[0])
    step = int(lhs_dilation[i])
    products *= int(((at >= 0) & (at <= (size - 1) * step) & (at % step == 0)).sum())
  return products
