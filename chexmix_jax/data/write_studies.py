"""From a source to study records: sharded, resumable, with an account and a check for leaks."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from chexmix_jax.config import check_at_least_one
from chexmix_jax.data import leaks, records, studies, workers
from chexmix_jax.data.account import as_json, check_refused, make_account, totals
from chexmix_jax.data.load_study import LoadOptions, load_study
from chexmix_jax.data.sources.source import SPLITS, Refusal, Source, Study
from chexmix_jax.errors import UserError
from chexmix_jax.files import write_lines
from chexmix_jax.progress import progress

_LEAKS = "leaks.jsonl"


@dataclasses.dataclass(frozen=True)
class WriteOptions:
  """How studies are written.

  Attributes:
    max_refused: share of the rows, of the studies or of the pictures that may be refused.
    drop_leaks: leave out what repeats a study of a later split, instead of stopping.
    shard_size: studies a file at most.
    workers: processes that read.
    process_index: which shards are this process's: every process_count-th from here on.
    process_count: processes that write the folder together.
  """

  max_refused: float = 0.01
  drop_leaks: bool = False
  shard_size: int = 2000
  workers: int = 1
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    check_at_least_one(self, ("shard_size", "workers", "process_count"), "prepare")
    if not 0 <= self.max_refused <= 1:
      raise UserError(f"max_refused={self.max_refused} must lie between 0 and 1.")


def write_studies(
    source: Source, output: pathlib.Path, load: LoadOptions, options: WriteOptions
) -> dict[str, Any] | None:
  """Reads this process's share of the studies and writes `output`; returns its card.

  None where other processes have shards left to write: the last to end makes the folder. Does
  nothing where `output` holds the same studies already, and goes on where it was stopped.

  Raises UserError for more refusals than `max_refused`, for a study that repeats one of another
  split, and for an `output` that holds something else; the shards that are done stay.
  """
  request = source.description | dataclasses.asdict(load) | {"shard_size": options.shard_size}
  card = records.finished(output, studies.KIND, request)
  if card is not None:
    return card
  by_split = {name: [s for s in source.studies if s.split == name] for name in SPLITS}
  shards = records.cut_shards({k: len(v) for k, v in by_split.items()}, options.shard_size)
  mine = records.my_shards(shards, options.process_index, options.process_count)
  writer = records.RecordWriter(output, studies.KIND, request, studies.FEATURES, shards)
  read, quarantine = totals(source), writer.partial / records.QUARANTINE
  refused = as_json(source.refused)
  check_refused(read, refused, options.max_refused, quarantine)
  with progress(total=sum(s.stop - s.start for s in mine), desc="prepare", unit="study") as bar:
    for shard in mine:
      if writer.is_done(shard):
        bar.update(shard.stop - shard.start)
      else:
        of_shard = by_split[shard.split][shard.start : shard.stop]
        _write_shard(writer, shard, of_shard, load, options.workers, bar)
      refused += writer.note(shard)["refused"]
      check_refused(read, refused, options.max_refused, quarantine)
  with writer.finishing() as is_mine:
    if not is_mine:
      return records.finished(output, studies.KIND, request)
    _drop_leaks(writer, shards, options.drop_leaks)
    refused = as_json(source.refused)
    for shard in shards:
      refused += writer.note(shard)["refused"]
    check_refused(read, refused, options.max_refused, quarantine)
    facts = {"size": load.size, "account": make_account(read, refused)}
    return writer.finish(facts, refused)


def _write_shard(
    writer: records.RecordWriter,
    shard: records.Shard,
    of_shard: Sequence[Study],
    load: LoadOptions,
    num_workers: int,
    bar: Any,
) -> None:
  index: dict[str, list[int]] = {name: [] for name in studies.INDEXED}
  note: dict[str, Any] = {"refused": [], "members": [], "index": index}

  def take() -> Iterator[records.Record]:
    function = functools.partial(load_study, options=load)
    with contextlib.closing(workers.ordered_map(function, of_shard, num_workers)) as results:
      for loaded in results:
        bar.update()
        note["refused"] += as_json(loaded.refused)
        if (record := loaded.record) is None:
          continue
        note["members"].append([record["study_id"], record["patient_id"], loaded.hashes])
        for name in studies.INDEXED:
          index[name].append(len(record[name]))
        yield record

  writer.write(shard, take(), note)


def _drop_leaks(
    writer: records.RecordWriter, shards: Sequence[records.Shard], is_allowed: bool
) -> None:
  """Looks for studies that stand in two splits, and leaves the earlier copies out or stops."""
  members: list[leaks.Member] = []
  places: list[tuple[records.Shard, int]] = []
  study_ids: list[str] = []
  for shard in shards:
    for number, (study_id, patient_id, hashes) in enumerate(writer.note(shard)["members"]):
      members.append(leaks.Member(shard.split, len(members), patient_id, hashes))
      places.append((shard, number))
      study_ids.append(study_id)
  found = leaks.find_leaks(members, SPLITS)
  if found and not is_allowed:
    path = writer.partial / _LEAKS
    rows = [
        {
            "kind": leak.kind,
            "split": leak.drop.split,
            "study": study_ids[leak.drop.number],
            "repeats_in": leak.keep.split,
            "repeats": study_ids[leak.keep.number],
        }
        for leak in found
    ]
    write_lines(path, rows)
    kinds = collections.Counter(leak.kind for leak in found)
    raise UserError(
        f"{kinds['patient']} studies are of a patient who stands in a later split too, and"
        f" {kinds['picture']} more have nearly the same picture as one there ({path} lists them);"
        " run again with --leaks=drop to leave them out."
    )
  dropped: dict[records.Shard, dict[int, list[Refusal]]] = collections.defaultdict(dict)
  for leak in found:
    shard, number = places[leak.drop.number]
    sentence = f"Its {leak.kind} stands in {leak.keep.split} too."
    where = f"record {number} of {shard.file_name}"
    dropped[shard][number] = [
        Refusal(level, where, f"leak by {leak.kind}", sentence)
        for level in ("study", *["picture"] * len(leak.drop.hashes))
    ]
  for shard, refusals in dropped.items():
    writer.drop(shard, set(refusals), as_json(list(itertools.chain(*refusals.values()))))
