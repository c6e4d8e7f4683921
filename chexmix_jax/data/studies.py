"""Study records: a picture at the model's size, its report and its labels."""

import contextlib
import dataclasses
import functools
import io
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from chexmix_jax.data import records, workers
from chexmix_jax.data.sources import source as source_lib
from chexmix_jax.errors import UserError
from chexmix_jax.labels import CHEXPERT_14
from chexmix_jax.progress import progress

_KIND = "studies"


@dataclasses.dataclass(frozen=True)
class StudyTable:
  """One split in memory, in the order it was written.

  Attributes:
    study_ids: N strings.
    patient_ids: N strings.
    images: uint8 (N, H, W).
    reports: N strings.
    labels: int8 (N, 14), see chexmix_jax.labels.
  """

  study_ids: list[str]
  patient_ids: list[str]
  images: np.ndarray
  reports: list[str]
  labels: np.ndarray


def write_studies(
    source: source_lib.Source, output: pathlib.Path, size: int, num_workers: int
) -> dict[str, Any]:
  """Reads every study at `size` pixels and writes `output`; returns its card.

  Does nothing when `output` holds the same studies already. Reading and rendering run in
  `num_workers` processes. Raises UserError for a study that cannot be used, an id that stands
  twice, or an `output` that holds something else; nothing is left behind then.
  """
  request = {**source.description, "size": size}
  card = records.finished(output, _KIND, request)
  if card is not None:
    return card
  _check_ids(source.studies)
  by_split = {name: [s for s in source.studies if s.split == name] for name in source_lib.SPLITS}
  in_order = [study for studies in by_split.values() for study in studies]
  load = functools.partial(source_lib.load_record, size=size)
  with (
      contextlib.closing(workers.ordered_map(load, in_order, num_workers)) as loaded,
      progress(total=len(in_order), desc="prepare", unit="study") as bar,
  ):

    def take(number: int) -> Iterator[records.Record]:
      for record in itertools.islice(loaded, number):
        bar.update()
        yield record

    splits = {name: take(len(studies)) for name, studies in by_split.items() if studies}
    return records.write_records(
        output, _KIND, request, _features(size), splits, facts={"size": size}
    )


def read_card(studies_dir: pathlib.Path) -> dict[str, Any]:
  """The card of a folder of studies: kind, request, size, splits, files."""
  return records.read_card(studies_dir, _KIND)


def open_studies(studies_dir: pathlib.Path, split: str) -> records.RecordSource:
  """Random access to study_id, patient_id, image (PNG bytes), report and labels of a split."""
  return records.RecordSource(studies_dir, _KIND, split)


def decode_image(png: bytes) -> np.ndarray:
  """uint8 (H, W) of a record's `image`."""
  return np.asarray(Image.open(io.BytesIO(png)))


def load_studies(studies_dir: pathlib.Path, split: str) -> StudyTable:
  """A whole split in memory."""
  rows = list(open_studies(studies_dir, split))
  return StudyTable(
      study_ids=[row["study_id"] for row in rows],
      patient_ids=[row["patient_id"] for row in rows],
      images=np.stack([decode_image(row["image"]) for row in rows]),
      reports=[row["report"] for row in rows],
      labels=np.stack([row["labels"] for row in rows]),
  )


def _features(size: int) -> dict[str, Any]:
  return {
      "study_id": tfds.features.Text(),
      "patient_id": tfds.features.Text(),
      "image": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
      "report": tfds.features.Text(),
      "labels": tfds.features.Tensor(shape=(len(CHEXPERT_14),), dtype=np.int8),
  }


def _check_ids(studies: Sequence[source_lib.Study]) -> None:
  first: dict[str, str] = {}
  for study in studies:
    if study.study_id in first:
      raise UserError(
          f"{first[study.study_id]} and {study.where} have the same study id; rename or remove one."
      )
    first[study.study_id] = study.where
