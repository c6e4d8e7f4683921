"""A folder of records: ArrayRecord written through a TFDS builder, and a card that describes it.

    DIR/dataset_info.json, features.json, *.array_record-*   TensorFlow Datasets' own files
    DIR/card.json    kind, request (what it was made from), splits, sizes of the files
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from chexmix_jax.errors import UserError

Record = dict[str, Any]

_CARD = "card.json"


class _Info(tfds.core.DatasetInfo):
  """Facts of a data set that TFDS's own bucket knows nothing of."""

  def initialize_from_bucket(self) -> None:
    """Looks nowhere: the original leaves an empty temporary folder behind."""


class _Builder(tfds.core.GeneratorBasedBuilder):
  """Writes given records of given features; keeps their order."""

  VERSION = tfds.core.Version("1.0.0")
  name = "chexmix"

  def __init__(
      self,
      *,
      features: Mapping[str, Any],
      splits: Mapping[str, Iterable[Record]],
      data_dir: str,
  ):
    self._feature_connectors = features
    self._records = splits
    super().__init__(data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(dict(self._feature_connectors))
    return _Info(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    return {name: enumerate(records) for name, records in self._records.items()}

  def _generate_examples(self) -> Any:
    raise NotImplementedError("_split_generators gives the examples themselves.")


def write_records(
    output: pathlib.Path,
    kind: str,
    request: Mapping[str, Any],
    features: Mapping[str, Any],
    splits: Mapping[str, Iterable[Record]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes `splits` to the folder `output`, whole or not at all, and returns its card.

  The card has `kind`, `request`, the keys of `facts`, `splits` (records each) and `files` (bytes
  each). Ask `finished` first: it tells whether the folder is there already.
  """
  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  try:
    partial.mkdir(parents=True)
    builder = _Builder(features=features, splits=splits, data_dir=str(partial))
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints how to cancel a download.
      builder.download_and_prepare(file_format="array_record")
    folder = pathlib.Path(builder.data_dir)
    card = {
        "kind": kind,
        "request": dict(request),
        **facts,
        "splits": {name: info.num_examples for name, info in builder.info.splits.items()},
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / _CARD).write_text(json.dumps(card, indent=2))
    os.replace(folder, output)
  except OSError as error:
    raise UserError(f"{output} cannot be written ({error}); give another --output.") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return card


def finished(output: pathlib.Path, kind: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
  """The card of `output` if it holds these records already, None if there is no such folder.

  Raises UserError if the folder holds something else, which is never overwritten.
  """
  if not output.exists() or (output.is_dir() and not any(output.iterdir())):
    return None
  if not (output / _CARD).is_file():
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
  path = folder / _CARD
  try:
    card = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise UserError(f"{folder} holds no {kind} (no {_CARD}); make them first.") from error
  except ValueError as error:
    raise UserError(f"{path} is damaged; delete {folder} and make it again.") from error
  if card.get("kind") != kind:
    raise UserError(f"{folder} holds {card.get('kind')}, not {kind}; name the right folder.")
  for name, size in card["files"].items():
    if not (folder / name).is_file() or (folder / name).stat().st_size != size:
      raise UserError(f"{folder / name} is damaged; delete {folder} and make it again.")
  return card


class RecordSource:
  """Random access to the decoded records of one split; also a Grain data source.

  Text features come as str, images as PNG bytes, the rest as arrays.
  """

  def __init__(self, folder: pathlib.Path, kind: str, split: str):
    card = read_card(folder, kind)
    if split not in card["splits"]:
      have = ", ".join(card["splits"])
      raise UserError(f"{folder} has no split {split!r}; it has {have}.")
    builder = tfds.builder_from_directory(str(folder))
    features = builder.info.features
    self._texts = [k for k, v in features.items() if isinstance(v, tfds.features.Text)]
    images = [k for k, v in features.items() if isinstance(v, tfds.features.Image)]
    self._source = builder.as_data_source(
        split=split, decoders={name: tfds.decode.SkipDecoding() for name in images}
    )

  def __len__(self) -> int:
    return len(self._source)

  def __iter__(self) -> Iterator[Record]:
    return (self[index] for index in range(len(self)))

  def __getitem__(self, index: int) -> Record:
    record = self._source[index]
    for name in self._texts:
      record[name] = record[name].decode()
    return record
