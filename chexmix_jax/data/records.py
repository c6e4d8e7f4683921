"""A folder of records: ArrayRecord files that TensorFlow Datasets reads, and a card.

    DIR/dataset_info.json, features.json, *.array_record-*   TensorFlow Datasets' own files
    DIR/dataset_card.json   kind, request (what it was made from), splits, sizes of the files
    DIR/index.npz           a few numbers of every record
    DIR/quarantine.jsonl    what was refused, a JSON object a line, where anything was

It is written shard by shard into `.DIR.partial`, by one process or several, and becomes DIR when
the last shard is there.
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from chexmix_jax.errors import UserError
from chexmix_jax.files import write_lines, write_whole

Record = dict[str, Any]

CARD = "dataset_card.json"
QUARANTINE = "quarantine.jsonl"
_INDEX = "index.npz"
_REQUEST = "request.json"
_LOCK = "finishing"
# Of what a record holds; 2: more texts.
_FORMAT = 2
_COMMANDS = {"studies": "prepare", "tokens": "tokenize"}
_NAME = "chexmix"
# Each record can be read by itself.
_OPTIONS = "group_size:1"


@dataclasses.dataclass(frozen=True)
class Shard:
  """A stretch of a split's items.

  Attributes:
    number: of `count` shards of this split.
    start: first item.
    stop: the item after the last.
  """

  split: str
  number: int
  count: int
  start: int
  stop: int

  @property
  def file_name(self) -> str:
    return f"{_NAME}-{self.split}.array_record-{self.number:05d}-of-{self.count:05d}"

  @property
  def note_name(self) -> str:
    return f"{self.split}-{self.number:05d}.json"


def cut_shards(splits: Mapping[str, int], shard_size: int) -> list[Shard]:
  """Shards of about equal length, at most `shard_size` items each."""
  shards = []
  for split, number in splits.items():
    count = -(-number // shard_size)
    bounds = [number * i // count for i in range(count + 1)] if count else []
    shards += [Shard(split, i, count, *bounds[i : i + 2]) for i in range(count)]
  return shards


class RecordWriter:
  """Writes the shards of a folder, each whole or not at all; goes on where it was stopped.

  It takes the folder, its kind ("studies", "tokens"), what it is made from, the features of a
  record, and all shards. Raises UserError where unfinished work of another request is there.
  """

  def __init__(
      self,
      output: pathlib.Path,
      kind: str,
      request: Mapping[str, Any],
      features: Mapping[str, Any],
      shards: Sequence[Shard],
  ):
    self._output, self._kind, self._shards = output, kind, shards
    self._request = json.loads(json.dumps(request))
    self._features = tfds.features.FeaturesDict(dict(features))
    self._serialise = tfds.core.example_serializer.ExampleSerializer(
        self._features.get_serialized_info()
    ).serialize_example
    self.partial = output.with_name(f".{output.name}.partial")
    path = self.partial / _REQUEST
    content = {"format": _FORMAT, "request": self._request}
    try:
      self.partial.mkdir(parents=True, exist_ok=True)
      if not path.exists():
        write_whole(path, json.dumps(content))
    except OSError as error:
      raise UserError(f"{output} cannot be written ({error}); give another --output.") from error
    if json.loads(path.read_text()) != content:
      raise UserError(
          f"{self.partial} holds unfinished {kind} of other input, settings or version; delete it,"
          " or give another --output."
      )

  def is_done(self, shard: Shard) -> bool:
    """Whether this shard is there, written by this process or another."""
    return (self.partial / shard.note_name).exists()

  def note(self, shard: Shard) -> dict[str, Any]:
    """What was noted when this shard was written."""
    return json.loads((self.partial / shard.note_name).read_text())

  def write(self, shard: Shard, records: Iterable[Record], note: dict[str, Any]) -> None:
    """Writes a shard; `note` is saved with it, after the last record was taken.

    A note has `index`, names and for each of them a number a record; `members`, something of every
    record, where records may be dropped later; `refused`, refusals as JSON.
    """
    path = self.partial / shard.file_name
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
      writer, number = ArrayRecordWriter(str(unfinished), _OPTIONS), 0
      try:
        for record in records:
          writer.write(self._serialise(self._features.encode_example(record)))
          number += 1
      finally:
        writer.close()
      os.replace(unfinished, path)
      content = json.dumps(note | {"records": number})
      write_whole(self.partial / shard.note_name, content)
    except OSError as error:
      raise UserError(f"{path} cannot be written ({error}); make room, then go on.") from error
    finally:
      unfinished.unlink(missing_ok=True)

  def drop(self, shard: Shard, numbers: set[int], refused: Sequence[Mapping[str, Any]]) -> None:
    """Takes records out of a shard that is done, by number; `refused` is added to its note."""
    note, path = self.note(shard), self.partial / shard.file_name
    # Cut off from here on, the shard would be written anew.
    (self.partial / shard.note_name).unlink()
    kept = [i for i in range(note["records"]) if i not in numbers]
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
    unfinished = path.with_name(f".{path.name}.unfinished")
    writer = ArrayRecordWriter(str(unfinished), _OPTIONS)
    for i in kept:
      writer.write(reader.read([i])[0])
    writer.close()
    reader.close()
    os.replace(unfinished, path)
    note["refused"] += refused
    note["records"] = len(kept)
    note["members"] = [note["members"][i] for i in kept]
    note["index"] = {name: [values[i] for i in kept] for name, values in note["index"].items()}
    write_whole(self.partial / shard.note_name, json.dumps(note))

  @contextlib.contextmanager
  def finishing(self) -> Iterator[bool]:
    """Whether all shards are there and this process, no other, is to make the folder of them."""
    if not all(map(self.is_done, self._shards)):
      yield False
      return
    with contextlib.ExitStack() as stack:
      try:
        file = stack.enter_context(open(self.partial / _LOCK, "w"))
        # Whatever ends a process, the system lets go of this.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except (FileNotFoundError, BlockingIOError):  # Another has made the folder, or is about to.
        yield False
      else:
        yield (self.partial / _REQUEST).exists()

  def finish(
      self, facts: Mapping[str, Any], refused: Sequence[Mapping[str, Any]] = ()
  ) -> dict[str, Any]:
    """Turns the shards into the folder, within `finishing`; returns its card.

    That has the facts, kind, format, request, splits, shards (records each), versions and files
    (bytes each).
    """
    notes = {shard: self.note(shard) for shard in self._shards}
    template = tfds.core.ShardedFileTemplate(
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", data_dir=self.partial,
        dataset_name=_NAME, filetype_suffix="array_record",
    )  # fmt: skip
    lengths: dict[str, list[int]] = {}
    num_bytes: dict[str, int] = {}
    index: dict[str, list[int]] = {}
    for shard, note in notes.items():
      lengths.setdefault(shard.split, []).append(note["records"])
      size = (self.partial / shard.file_name).stat().st_size
      num_bytes[shard.split] = num_bytes.get(shard.split, 0) + size
      for name, values in note["index"].items():
        index.setdefault(f"{shard.split}/{name}", []).extend(values)
    tfds.folder_dataset.write_metadata(
        data_dir=str(self.partial),
        features=self._features,
        split_infos=[
            tfds.core.SplitInfo(
                name=split, shard_lengths=of_split, num_bytes=num_bytes[split],
                filename_template=template,
            )
            for split, of_split in lengths.items()
        ],
        filename_template=template.template,
        check_data=False,  # That would need TensorFlow.
    )  # fmt: skip
    arrays: dict[str, Any] = {k: np.asarray(v, np.int32) for k, v in index.items()}
    np.savez(self.partial / _INDEX, **arrays)
    if refused:
      write_lines(self.partial / QUARANTINE, refused)
    made = ["dataset_info.json", "features.json", _INDEX, *(s.file_name for s in self._shards)]
    card = {
        "kind": self._kind,
        "format": _FORMAT,
        "request": self._request,
        **facts,
        "splits": {split: sum(of_split) for split, of_split in lengths.items()},
        "shards": lengths,
        "versions": _versions(),
        "files": {name: (self.partial / name).stat().st_size for name in sorted(made)},
    }
    write_whole(self.partial / CARD, json.dumps(card, indent=2))
    if self._output.exists():
      self._output.rmdir()  # An empty folder, which `finished` lets through.
    os.replace(self.partial, self._output)
    for path in self._output.iterdir():
      if path.name not in (*made, CARD, QUARANTINE):
        path.unlink()
    return card


def _versions() -> dict[str, str]:
  """Of what decides about pixels and bytes."""
  return {name: importlib.metadata.version(name) for name in ("chexmix_jax", "numpy", "pillow")} | {
      "python": platform.python_version()
  }


def which_have(index: Mapping[str, np.ndarray], need: Sequence[str]) -> np.ndarray | None:
  """Numbers of the records of which all of `need` is more than 0 in the index; None for all."""
  if not need:
    return None
  return np.flatnonzero(np.logical_and.reduce([index[name] > 0 for name in need]))


def my_shards(shards: Sequence[Shard], process_index: int, process_count: int) -> list[Shard]:
  """Every process_count-th shard from process_index on."""
  if not 0 <= process_index < process_count:
    raise UserError(
        f"--process_index={process_index} must lie in 0 .. {process_count - 1}, with"
        f" --process_count={process_count}."
    )
  return list(shards[process_index::process_count])


def finished(output: pathlib.Path, kind: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
  """The card of `output` if it holds these records already, None if there is no such folder.

  Raises UserError if the folder holds something else, which is never overwritten.
  """
  if not output.exists() or (output.is_dir() and not any(output.iterdir())):
    return None
  if not (output / CARD).is_file():
    raise UserError(f"{output} exists and holds no records; name another --output or delete it.")
  card = read_card(output, kind)
  if card["request"] != json.loads(json.dumps(request)):
    raise UserError(
        f"{output} holds {kind} made from other input or settings; name another --output or delete"
        " that folder."
    )
  return card


def read_card(folder: pathlib.Path, kind: str) -> dict[str, Any]:
  """The card of a folder of records of this kind; UserError for anything else or damaged files."""
  path = folder / CARD
  try:
    card = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise UserError(f"{folder} holds no {kind} (no {CARD}); make them first.") from error
  except ValueError as error:
    raise UserError(f"{path} is damaged; delete {folder} and make it again.") from error
  if card.get("kind") != kind:
    raise UserError(f"{folder} holds {card.get('kind')}, not {kind}; name the right folder.")
  if card.get("format") != _FORMAT:
    raise UserError(
        f"{folder} holds {kind} of another version of chexmix_jax, whose records have other texts;"
        f" delete it and run {_COMMANDS[kind]} again."
    )
  for name, size in card["files"].items():
    if not (folder / name).is_file() or (folder / name).stat().st_size != size:
      raise UserError(f"{folder / name} is damaged; delete {folder} and make it again.")
  return card


def read_index(folder: pathlib.Path, kind: str, split: str) -> dict[str, np.ndarray]:
  """The numbers noted of every record of a split, int32 (N,) each, by name."""
  _check_split(read_card(folder, kind), folder, split)
  with np.load(folder / _INDEX) as arrays:
    return {name.split("/")[1]: arrays[name] for name in arrays if name.split("/")[0] == split}


def _check_split(card: dict[str, Any], folder: pathlib.Path, split: str) -> None:
  if split not in card["splits"]:
    have = ", ".join(card["splits"])
    raise UserError(f"{folder} has no split {split!r}; it has {have}.")


class RecordSource:
  """Random access to the decoded records of one split; also a Grain data source.

  Text features come as str, sequences of bytes as lists, the rest as arrays. `numbers` chooses
  records, by number, and `fields` what is decoded of each; by default all.
  """

  def __init__(
      self,
      folder: pathlib.Path,
      kind: str,
      split: str,
      numbers: np.ndarray | None = None,
      fields: Sequence[str] | None = None,
  ):
    card = read_card(folder, kind)
    _check_split(card, folder, split)
    builder = tfds.builder_from_directory(str(folder))
    features = {k: v for k, v in builder.info.features.items() if fields is None or k in fields}
    self._features = tfds.features.FeaturesDict(features)
    self._texts = [k for k, v in features.items() if isinstance(v, tfds.features.Text)]
    # Of a split whose records were all refused ArrayRecord cannot make a source.
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    self._source = (
        builder.as_data_source(split=split, deserialize_method=raw) if card["splits"][split] else []
    )
    self._numbers = range(len(self._source)) if numbers is None else [int(n) for n in numbers]

  def __len__(self) -> int:
    return len(self._numbers)

  def __iter__(self) -> Iterator[Record]:
    return (self[index] for index in range(len(self)))

  def __getitem__(self, index: int) -> Record:
    record = self._features.deserialize_example_np(self._source[self._numbers[index]])
    for name in self._texts:
      record[name] = record[name].decode()
    return record
