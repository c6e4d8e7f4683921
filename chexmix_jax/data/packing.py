"""Which documents stand in which row of which batch: the same for any number of processes.

Everything here goes by lengths alone, so every process works out the whole order and reads only the
documents of its own rows.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from chexmix_jax.data.documents import Form
from chexmix_jax.errors import UserError


class Entry(NamedTuple):
  """One document.

  Attributes:
    epoch: in which it comes.
    copy: which time in this epoch, for sets of a weight above 1.
    folder: number of the set.
    number: of the study in its set.
    form: number of its form.
  """

  epoch: int
  copy: int
  folder: int
  number: int
  form: int


@dataclasses.dataclass(frozen=True)
class StudySet:
  """The studies of one folder by what documents they can make.

  Attributes:
    lengths: int32 (N, F), tokens of the document of each form; 0 where a study lacks a part of it.
    weight: how many times an epoch has each study; a fraction is that share of them, drawn.
  """

  lengths: np.ndarray
  weight: float


def document_lengths(
    index: dict[str, np.ndarray], forms: Sequence[Form], num_codes: int
) -> np.ndarray:
  """int32 (N, F) of StudySet, of documents that are not cut, by the index of a folder of tokens."""
  columns = []
  for form in forms:
    columns.append(np.where(form.can_be(index), form.length(num_codes, index), 0))
  return np.stack(columns, axis=1).astype(np.int32)


def make_epoch(
    sets: Sequence[StudySet], forms: Sequence[Form], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
  """Entries without their epoch, int32 (M, 4), in the order of one epoch, and lengths (M,).

  Which form a study gets is drawn anew in every epoch, among those that it can have.
  """
  weights = np.array([form.weight for form in forms])
  entries, lengths = [], []
  for folder, study_set in enumerate(sets):
    numbers = np.flatnonzero(study_set.lengths.any(axis=1))
    whole, rest = divmod(study_set.weight, 1.0)
    for copy in range(int(whole) + (rest > 0)):
      rng = np.random.default_rng([seed, epoch, folder, copy])
      chosen = numbers
      if copy == int(whole):
        chosen = np.sort(rng.permutation(numbers)[: round(rest * len(numbers))])
      of_forms = study_set.lengths[chosen]
      odds = np.cumsum(np.where(of_forms > 0, weights, 0.0), axis=1)
      drawn = rng.random(len(chosen)) * odds[:, -1]
      form = (odds <= drawn[:, None]).sum(axis=1)
      columns = [np.full_like(chosen, copy), np.full_like(chosen, folder), chosen, form]
      entries.append(np.stack(columns, axis=1))
      lengths.append(of_forms[np.arange(len(chosen)), form])
  order = np.random.default_rng([seed, epoch]).permutation(sum(map(len, entries)))
  return np.concatenate(entries)[order].astype(np.int32), np.concatenate(lengths)[order]


def max_documents(context: int) -> int:
  """Of a row: attention kernels want a limit, and take time for what is not there (cuDNN does)."""
  return max(15, context // 32 - 1)


class RowPacker:
  """Endless rows of documents, epoch after epoch; its position is a small JSON value.

  A document goes into the fullest of the open rows that has room; where none has, the fullest row
  of all is given out and a new one opened. No row gets more than `max_documents`.
  """

  def __init__(
      self,
      epoch: Callable[[int], tuple[np.ndarray, np.ndarray]],
      context: int,
      open_rows: int,
  ):
    """`epoch` gives what `make_epoch` does, by number; `open_rows` are filled at a time."""
    self._make_epoch, self._context, self._open_rows = epoch, context, open_rows
    self._epoch, self._next = 0, 0
    self._rows: list[list[Entry]] = []
    self._room = np.zeros(0, np.int64)
    self._load()

  def _load(self) -> None:
    self._entries, self._lengths = self._make_epoch(self._epoch)
    if not len(self._entries):
      raise UserError(
          "data.documents: no study has what any of them needs; name another form, such as image."
      )
    self._shortest = int(self._lengths.min())

  def next_row(self) -> list[Entry]:
    """The next row's documents, in their order."""
    while True:
      if self._next == len(self._entries):
        self._epoch, self._next = self._epoch + 1, 0
        self._load()
      if (row := self._place()) is not None:
        return row

  def rest_of_epoch(self) -> Iterator[list[Entry]]:
    """The rows of all that has not been given out of this epoch, and no others."""
    while self._next < len(self._entries):
      if (row := self._place()) is not None:
        yield row
    while self._rows:
      yield self._take(0)

  def _place(self) -> list[Entry] | None:
    """Puts the next document into a row, or makes room for it; a row that is given out by that."""
    length = int(self._lengths[self._next])
    fits = np.flatnonzero(self._room >= length)
    if not len(fits) and len(self._rows) == self._open_rows:
      return self._take(int(self._room.argmin()))
    if len(fits):
      row = int(fits[self._room[fits].argmin()])
    else:
      row = len(self._rows)
      self._rows.append([])
      self._room = np.append(self._room, self._context)
    self._rows[row].append(Entry(self._epoch, *map(int, self._entries[self._next])))
    self._room[row] -= length
    self._next += 1
    is_full = self._room[row] < self._shortest
    if is_full or len(self._rows[row]) == max_documents(self._context):
      return self._take(row)
    return None

  def _take(self, row: int) -> list[Entry]:
    self._room = np.delete(self._room, row)
    return self._rows.pop(row)

  def get_state(self) -> dict[str, Any]:
    """Where it stands; JSON-ready."""
    rows = [[list(entry) for entry in row] for row in self._rows]
    return {"epoch": self._epoch, "next": self._next, "rows": rows, "room": self._room.tolist()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from what `get_state` gave."""
    if state["epoch"] != self._epoch:
      self._epoch = state["epoch"]
      self._load()
    self._next = state["next"]
    self._rows = [[Entry(*entry) for entry in row] for row in state["rows"]]
    self._room = np.array(state["room"], np.int64)
