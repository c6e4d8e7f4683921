"""Grain pipelines: packed token batches for training, pictures for the image tokenizer."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from chexmix_jax.data import images, packing, studies, tokens
from chexmix_jax.data.documents import IMAGE_PARTS, Form, Text, make_document, parse_forms
from chexmix_jax.data.masking import MaskingConfig, mask_document
from chexmix_jax.data.records import Record
from chexmix_jax.data.sources.source import VIEWS
from chexmix_jax.data.targets import FindingTargets, LabelConfig
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

# Batches made ahead in a thread, while the accelerator works.
_PREFETCH = 2


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Training batches.

  Attributes:
    tokens: folders of token records, `DIR` or `DIR:2, DIR:0.5`: after a colon how many times an
      epoch has each study of it.
    context: tokens a row.
    batch_size: rows a step over all processes.
    documents: what a study becomes, such as `image report:3, image (question) answer, report`; see
      chexmix_jax.data.documents.
    shuffle_seed: of the order of documents, of their forms and of their masks.
    packing_rows: rows that are filled at a time; more leave less padding.
    masking: inputs hidden and targets weighed; the default is stage 1.
    labels: of a classifier, where one is trained.
  """

  tokens: str
  context: int
  batch_size: int
  documents: str = "image report"
  shuffle_seed: int = 0
  packing_rows: int = 64
  masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
  labels: LabelConfig = dataclasses.field(default_factory=LabelConfig)


def parse_folders(text: str) -> list[tuple[pathlib.Path, float]]:
  """Folders and weights of DataConfig.tokens; UserError for a weight that is not positive."""
  folders = []
  for item in text.split(","):
    name, _, weight = item.strip().rpartition(":")
    try:
      folder, number = (name, float(weight)) if name else (weight, 1.0)
    except ValueError:  # The colon belongs to the name.
      folder, number = item.strip(), 1.0
    if number <= 0:
      raise UserError(f"data.tokens: the weight of {folder} must be more than 0.")
    folders.append((pathlib.Path(folder), number))
  return folders


def read_card(config: DataConfig) -> dict[str, Any]:
  """The common card of the folders of a config, see tokens.read_joint_card."""
  return tokens.read_joint_card([folder for folder, _ in parse_folders(config.tokens)])


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the documents and their order follow from.

  Attributes:
    split: whose studies they are.
    vocabulary: of all folders.
    forms: of documents.
    sets: the studies of every folder.
    num_studies: studies that can be a document of any of the forms.
    num_cut: those of them of which some form is longer than the context, and is cut.
    targets: of the classifier, if any.
  """

  split: str
  vocabulary: Vocabulary
  forms: tuple[Form, ...]
  sets: tuple[packing.StudySet, ...]
  num_studies: int
  num_cut: int
  targets: FindingTargets | None = None


def make_plan(config: DataConfig, findings: Sequence[str] = (), split: str = "train") -> Plan:
  """Reads how long the documents are; UserError where the context is too short for their images.

  `findings` are those of a classifier, which is trained on the studies that have its labels.
  """
  forms = parse_forms(config.documents)
  card = read_card(config)
  num_codes = int(np.prod(card["grid"]))
  shortest = max(form.min_context(num_codes) for form in forms)
  if config.context < shortest:
    raise UserError(
        f"data.context={config.context} cannot hold the documents {config.documents!r}; use"
        f" {shortest} or more."
    )
  targets = FindingTargets(findings, config.labels) if findings else None
  if targets is not None and any(form.num_images == 0 for form in forms):
    raise UserError(f"data.documents={config.documents!r}: a classifier needs a picture in each.")
  sets, num_studies, num_cut = [], 0, 0
  for folder, weight in parse_folders(config.tokens):
    index = tokens.read_index(folder, split)
    lengths = packing.document_lengths(index, forms, num_codes)
    if targets is not None and not targets.is_complete:
      records = tokens.open_tokens(folder, split, fields=FindingTargets.FIELDS)
      knows = [targets.knows(record) for record in records]
      lengths[~np.array(knows)] = 0
    num_studies += int(lengths.any(axis=1).sum())
    num_cut += int((lengths > config.context).any(axis=1).sum())
    sets.append(packing.StudySet(np.minimum(lengths, config.context), weight))
  vocabulary = Vocabulary(**card["vocabulary"])
  return Plan(split, vocabulary, forms, tuple(sets), num_studies, num_cut, targets)


def train_iterator(
    config: DataConfig, process_index: int = 0, process_count: int = 1, plan: Plan | None = None
) -> grain.DatasetIterator:
  """Endless batches of this process's rows of the training split; close it when done.

  A batch is dict(inputs, targets, positions, segment_ids: int32 (B, T); weights: float32 (B, T))
  with B = batch_size / process_count. Whole documents stand back to back in a row, numbered from 1
  by `segment_ids`, with positions from 0; padding has segment 0 and weight 0. With a classifier
  `labels` float32 (B, S, F) are added, of up to S = packing.max_documents(context) documents a row.

  The batches of all processes put together depend on the config alone, and so does the state that
  get_state gives: with set_state any number of processes goes on from exactly there. `plan` is the
  config's, where it has been made.

  Raises UserError when the context cannot hold the documents' images.
  """
  if config.batch_size < 1 or config.batch_size % process_count:
    raise UserError(
        f"data.batch_size={config.batch_size} must be a positive multiple of {process_count}, the"
        " number of processes."
    )
  plan = plan or make_plan(config)
  share = config.batch_size // process_count
  rows = _RowDataset(config, plan, slice(process_index * share, (process_index + 1) * share))
  batches = rows.map(_Reader(config, plan))
  return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_PREFETCH))


class EpochStart:
  """The first documents of the first epoch of a split, each once: the same batches every time.

  They are what a run over this split would see first, with the same forms, masks and weights.
  Batches are like those of `train_iterator`; the last one is filled up by rows without weight or
  labels.
  """

  def __init__(
      self,
      config: DataConfig,
      split: str,
      number: int,
      batch_size: int,
      process_index: int = 0,
      process_count: int = 1,
      findings: Sequence[str] = (),
  ):
    """Of `number` documents, or all where there are fewer; `batch_size` rows over all processes.

    `findings` are those of a classifier. Raises UserError for a split that is not there, or without
    such documents.
    """
    plan = make_plan(config, findings, split)

    def start(epoch: int) -> tuple[np.ndarray, np.ndarray]:
      entries, lengths = packing.make_epoch(plan.sets, plan.forms, config.shuffle_seed, epoch)
      return entries[:number], lengths[:number]

    packer = packing.RowPacker(start, config.context, config.packing_rows)
    self._rows = list(packer.rest_of_epoch())
    self._reader = _Reader(config, plan)
    self._batch_size = batch_size
    share = batch_size // process_count
    self._share = slice(process_index * share, (process_index + 1) * share)
    self.num_documents = sum(map(len, self._rows))

  def __len__(self) -> int:
    """Batches."""
    return -(-len(self._rows) // self._batch_size)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of each batch."""
    for start in range(0, len(self._rows), self._batch_size):
      rows = self._rows[start : start + self._batch_size]
      missing = self._batch_size - len(rows)
      # A row without a document would have tokens that attend to padding alone.
      batch = self._reader([*rows, *[self._rows[0]] * missing][self._share])
      is_filler = np.arange(self._batch_size)[self._share] >= len(rows)
      batch["weights"][is_filler] = 0.0
      if "labels" in batch:
        batch["labels"][is_filler] = np.nan
      yield batch


class _RowDataset(grain.IterDataset):
  """Of every global batch the rows of one process, as lists of entries."""

  def __init__(self, config: DataConfig, plan: Plan, rows: slice):
    super().__init__()
    self._config, self._plan, self._rows = config, plan, rows

  def __iter__(self) -> grain.DatasetIterator:
    config, plan = self._config, self._plan
    epoch = functools.partial(packing.make_epoch, plan.sets, plan.forms, config.shuffle_seed)
    packer = packing.RowPacker(epoch, config.context, config.packing_rows)
    return _RowIterator(packer, config.batch_size, self._rows)


class _RowIterator(grain.DatasetIterator):
  def __init__(self, packer: packing.RowPacker, batch_size: int, rows: slice):
    super().__init__()
    self._packer, self._batch_size, self._rows = packer, batch_size, rows

  def __next__(self) -> list[list[packing.Entry]]:
    return [self._packer.next_row() for _ in range(self._batch_size)][self._rows]

  def get_state(self) -> dict[str, Any]:
    return self._packer.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    self._packer.set_state(state)


class _Reader:
  """Turns rows of entries into a batch."""

  def __init__(self, config: DataConfig, plan: Plan):
    self._config, self._plan = config, plan
    self._vocabulary = plan.vocabulary
    texts = {text for form in plan.forms for text in form.texts}
    fields = ["codes", "views", *(f"{t}_{what}" for t in texts for what in ("ids", "sentences"))]
    if plan.targets is not None:
      fields += FindingTargets.FIELDS
    self._sources = [
        tokens.open_tokens(folder, plan.split, fields=fields)
        for folder, _ in parse_folders(config.tokens)
    ]

  def __call__(self, rows: Sequence[Sequence[packing.Entry]]) -> dict[str, np.ndarray]:
    shape = (len(rows), self._config.context)
    pad = self._vocabulary.pad
    batch = {
        "inputs": np.full(shape, pad, np.int32),
        "targets": np.full(shape, pad, np.int32),
        "positions": np.zeros(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "weights": np.zeros(shape, np.float32),
    }
    targets = self._plan.targets
    if targets is not None:
      labels = (len(rows), packing.max_documents(self._config.context), targets.num_findings)
      batch["labels"] = np.full(labels, np.nan, np.float32)
    for i, row in enumerate(rows):
      records = [self._sources[entry.folder][entry.number] for entry in row]
      if targets is not None and records:
        batch["labels"][i, : len(records)] = targets(records)
      start = 0
      for segment, (entry, record) in enumerate(zip(row, records, strict=True), start=1):
        document = self._document(entry, record)
        stop = start + len(document["inputs"])
        for name, values in document.items():
          batch[name][i, start:stop] = values
        batch["positions"][i, start:stop] = np.arange(stop - start)
        batch["segment_ids"][i, start:stop] = segment
        start = stop
    return batch

  def _document(self, entry: packing.Entry, record: Record) -> dict[str, np.ndarray]:
    """inputs, targets and weights of a document; all chance is the entry's own."""
    rng = np.random.default_rng([self._config.shuffle_seed, *entry])
    form = self._plan.forms[entry.form]
    parts = [_part(record, part, rng) for part in form.parts]
    prompts = [part in form.prompts for part in form.parts]
    document = make_document(parts, self._vocabulary, self._config.context, prompts)
    return mask_document(document, self._config.masking, self._vocabulary, rng)


def _part(record: Record, part: str, rng: np.random.Generator) -> np.ndarray | Text:
  if part not in IMAGE_PARTS:
    return Text(record[f"{part}_ids"], record[f"{part}_sentences"])
  numbers = np.arange(len(record["codes"]))
  if part != "image":
    numbers = np.flatnonzero(record["views"] == VIEWS.index(part))
  return record["codes"][numbers[rng.integers(len(numbers))]]


def image_iterator(
    studies_dir: pathlib.Path, split: str, batch_size: int, seed: int
) -> grain.DatasetIterator:
  """Endless shuffled batches dict(image: float32 (B, H, W, 1) in [-1, 1]); close it when done.

  Of a study with several pictures each epoch has one, drawn.
  """
  pictures = grain.MapDataset.source(studies.open_studies(studies_dir, split, ("pictures",)))
  pictures = pictures.seed(seed).shuffle().repeat().random_map(_to_picture)
  batches = pictures.batch(batch_size, drop_remainder=True).map(_to_float)
  rows = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  return iter(grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=_PREFETCH))


def _to_picture(record: Record, rng: np.random.Generator) -> np.ndarray:
  pictures = record["pictures"]
  return studies.decode_picture(pictures[rng.integers(len(pictures))])


def _to_float(pictures: np.ndarray) -> dict[str, np.ndarray]:
  return {"image": images.to_float(pictures)[..., None]}
