"""From study records to token records: sharded, resumable, decoding beside the accelerator."""

import concurrent.futures
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from chexmix_jax.data import images, records, studies, tokens
from chexmix_jax.data.account import make_account
from chexmix_jax.data.documents import TEXT_PARTS
from chexmix_jax.data.sources.source import VIEWS
from chexmix_jax.data.workers import available_cpus
from chexmix_jax.errors import UserError
from chexmix_jax.progress import progress
from chexmix_jax.tokenizers.sentences import SentenceEnds
from chexmix_jax.tokenizers.text import TextTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary

_STUDIES_AT_A_TIME = 256


class ImageTokenizer(Protocol):
  """What tokenising needs of an image tokenizer."""

  grid: tuple[int, int]
  num_codes: int

  @property
  def fingerprint(self) -> str:
    """Hex."""

  @property
  def codes_fingerprint(self) -> str:
    """Hex, equal for tokenizers whose codes mean the same."""

  def encode(self, pixels: np.ndarray) -> np.ndarray:
    """int32 (N, h, w) codes of float32 (N, H, W, C) pixels in [-1, 1]."""


def write_tokens(
    studies_dir: pathlib.Path,
    image_tokenizer: ImageTokenizer,
    text_tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    output: pathlib.Path,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, Any] | None:
  """Writes this process's share of the tokens of all splits to `output`; returns the card.

  None where other processes have shards left to write: the last to end makes the folder. A shard of
  studies makes a shard of tokens. Does nothing when `output` holds the same tokens already, and
  goes on where it was stopped. Raises UserError for tokenizers that do not fit the vocabulary and
  for an `output` that holds something else.
  """
  _check_sizes(image_tokenizer, text_tokenizer, vocabulary)
  facts = {
      "vocabulary": vocabulary.to_dict(),
      "image_tokenizer": image_tokenizer.codes_fingerprint,
      "text_tokenizer": text_tokenizer.fingerprint,
      "grid": list(image_tokenizer.grid),
  }
  studies_card = studies.read_card(studies_dir)
  request = {
      "studies": studies_card["request"],
      **facts,
      "image_tokenizer": image_tokenizer.fingerprint,
  }
  card = records.finished(output, tokens.KIND, request)
  if card is not None:
    return card
  shards = [
      records.Shard(split, i, len(lengths), start, start + lengths[i])
      for split, lengths in studies_card["shards"].items()
      for i, start in enumerate(itertools.accumulate(lengths, initial=0))
      if i < len(lengths)
  ]
  mine = records.my_shards(shards, process_index, process_count)
  num_codes = int(np.prod(image_tokenizer.grid))
  writer = records.RecordWriter(output, tokens.KIND, request, tokens.features(num_codes), shards)
  sources = {split: studies.open_studies(studies_dir, split) for split in studies_card["splits"]}
  ends = SentenceEnds(text_tokenizer)
  with progress(total=sum(s.stop - s.start for s in mine), desc="tokenize", unit="study") as bar:
    for shard in mine:
      if writer.is_done(shard):
        bar.update(shard.stop - shard.start)
        continue
      index: dict[str, list[int]] = {name: [] for name in tokens.INDEXED}
      source = sources[shard.split]
      made = _tokens(source, shard, image_tokenizer, text_tokenizer, ends, vocabulary)
      writer.write(shard, _noted(made, index, bar), {"refused": [], "index": index})
  with writer.finishing() as is_mine:
    if not is_mine:
      return records.finished(output, tokens.KIND, request)
    account = make_account({"study": sum(studies_card["splits"].values())}, [])
    return writer.finish({**facts, "account": account})


def _noted(
    made: Iterable[records.Record], index: dict[str, list[int]], bar: Any
) -> Iterator[records.Record]:
  for record in made:
    bar.update()
    index["pictures"].append(len(record["codes"]))
    for view in ("frontal", "lateral"):
      index[view].append(int(np.sum(record["views"] == VIEWS.index(view))))
    for name in TEXT_PARTS:
      index[name].append(len(record[f"{name}_ids"]))
    yield record


def _tokens(
    source: records.RecordSource,
    shard: records.Shard,
    image_tokenizer: ImageTokenizer,
    text_tokenizer: TextTokenizer,
    ends: SentenceEnds,
    vocabulary: Vocabulary,
) -> Iterator[records.Record]:
  """Records of a shard; the next pictures are decoded while these are encoded."""
  height, width = image_tokenizer.grid
  bounds = range(shard.start, shard.stop, _STUDIES_AT_A_TIME)
  if not bounds:  # All of its studies were refused.
    return
  with (
      concurrent.futures.ThreadPoolExecutor(1) as ahead,
      concurrent.futures.ThreadPoolExecutor(available_cpus()) as decoders,
  ):

    def read(start: int) -> tuple[list[records.Record], list[np.ndarray]]:
      rows = [source[i] for i in range(start, min(start + _STUDIES_AT_A_TIME, shard.stop))]
      pictures = [png for row in rows for png in row["pictures"]]
      return rows, list(decoders.map(studies.decode_picture, pictures))

    coming = [ahead.submit(read, start) for start in bounds[:1]]
    for start in [*bounds[1:], None]:
      rows, pictures = coming.pop().result()
      if start is not None:
        coming.append(ahead.submit(read, start))
      codes: Iterator[np.ndarray] = iter(())
      if pictures:
        pixels = images.to_float(np.stack(pictures))[..., None]
        codes = iter(np.asarray(image_tokenizer.encode(pixels), np.int32))
      for row in rows:
        of_row = [next(codes).reshape(-1) for _ in row["pictures"]]
        texts: dict[str, np.ndarray] = {}
        for name in TEXT_PARTS:
          ids = np.asarray(text_tokenizer.encode(studies.text_of(row, name)), np.int32)
          texts |= {f"{name}_ids": vocabulary.text_to_ids(ids), f"{name}_sentences": ends(ids)}
        yield {
            "study_id": row["study_id"],
            "patient_id": row["patient_id"],
            "codes": np.array(of_row, np.int32).reshape(-1, height * width),
            "views": row["views"],
            "labels": row["labels"],
            **texts,
        }


def _check_sizes(
    image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> None:
  for what, size, room in (
      ("image tokenizer", image_tokenizer.num_codes, vocabulary.num_codes),
      ("text tokenizer", text_tokenizer.vocab_size, vocabulary.text_vocab_size),
  ):
    if size != room:
      raise UserError(
          f"The {what} has {size} ids where the vocabulary has {room}; use the vocabulary made for"
          " it."
      )
