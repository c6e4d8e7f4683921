"""Grain pipelines: packed token batches for training, pictures for the image tokenizer."""

import dataclasses
import pathlib
from typing import Any

import grain
import numpy as np

from chexmix_jax.data import images, studies, tokens
from chexmix_jax.data.documents import make_document, min_context
from chexmix_jax.data.masking import MaskingConfig, mask_document
from chexmix_jax.data.records import Record
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

# Batches made ahead in a thread, while the accelerator works.
_PREFETCH = 2
_PACKED = ("inputs", "targets", "weights")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Training batches.

  Attributes:
    tokens: folder of token records.
    context: tokens a row.
    batch_size: rows a step over all processes.
    shuffle_seed: of the order of documents and of their masks.
    packing_rows: rows that are filled at a time; more leave less padding.
    masking: inputs hidden and targets weighed; the default is stage 1.
  """

  tokens: str
  context: int
  batch_size: int
  shuffle_seed: int = 0
  packing_rows: int = 64
  masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)


def train_iterator(
    config: DataConfig, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
  """Endless batches of this process's rows of the training split; close it when done.

  A batch is dict(inputs, targets, positions, segment_ids: int32 (B, T); weights: float32 (B, T))
  with B = batch_size / process_count. Whole documents stand back to back in a row, numbered from 1
  by `segment_ids`, with positions from 0; padding has segment 0 and weight 0.

  Each epoch is one shuffle of all documents, of which process p takes every process_count-th from
  p on. A document's mask depends on the seed, the epoch and its number, on nothing else. State
  saved with get_state brings back the exact position with set_state.

  Raises UserError when the context cannot hold an image.
  """
  card = tokens.read_card(pathlib.Path(config.tokens))
  vocabulary = Vocabulary(**card["vocabulary"])
  shortest = min_context(int(np.prod(card["grid"])))
  if config.context < shortest:
    raise UserError(
        f"data.context={config.context} cannot hold an image and a report; use {shortest} or more."
    )
  if config.batch_size < 1 or config.batch_size % process_count:
    raise UserError(
        f"data.batch_size={config.batch_size} must be a positive multiple of {process_count}, the"
        " number of processes."
    )
  records = _Numbered(tokens.open_tokens(pathlib.Path(config.tokens), "train"))

  def to_document(index: int, record: Record) -> dict[str, np.ndarray]:
    epoch = index // len(records)
    rng = np.random.default_rng([config.shuffle_seed, epoch, record["number"]])
    document = make_document(record["codes"], record["text"], vocabulary, config.context)
    return mask_document(document, config.masking, vocabulary, rng)

  documents = grain.MapDataset.source(records).seed(config.shuffle_seed).shuffle().repeat()
  # The index is the place in the global order, so the slice for this process comes after it.
  documents = documents.map_with_index(to_document)[process_index::process_count]
  packed = grain.experimental.FirstFitPackIterDataset(
      documents.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
      length_struct=dict.fromkeys(_PACKED, config.context),
      padding_struct={"inputs": vocabulary.pad, "targets": vocabulary.pad, "weights": 0.0},
      num_packing_bins=config.packing_rows,
      seed=config.shuffle_seed,
  )
  batches = packed.map(_rename).batch(config.batch_size // process_count, drop_remainder=True)
  return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_PREFETCH))


def image_iterator(
    studies_dir: pathlib.Path, split: str, batch_size: int, seed: int
) -> grain.DatasetIterator:
  """Endless shuffled batches dict(image: float32 (B, H, W, 1) in [-1, 1]); close it when done."""
  pictures = grain.MapDataset.source(studies.open_studies(studies_dir, split))
  pictures = pictures.seed(seed).shuffle().repeat().map(_to_picture)
  batches = pictures.batch(batch_size, drop_remainder=True).map(_to_float)
  rows = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  return iter(grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=_PREFETCH))


class _Numbered:
  """A source whose records know their number."""

  def __init__(self, source: Any):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Record:
    return {**self._source[index], "number": index}


def _rename(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {
      **{name: row[name] for name in _PACKED},
      "positions": row["inputs_positions"],
      "segment_ids": row["inputs_segment_ids"],
  }


def _to_picture(record: Record) -> np.ndarray:
  return studies.decode_image(record["image"])


def _to_float(pictures: np.ndarray) -> dict[str, np.ndarray]:
  return {"image": images.to_float(pictures)[..., None]}
