import dataclasses
import fcntl
import functools
import json
import operator
import os

import numpy as np
import pytest

from chexmix_jax.data import records, studies, workers
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.sources import r2gen, source
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.errors import BadRow, UserError

LOAD = LoadOptions(16)


def _pixels(number, size):
  return np.random.default_rng(number).integers(0, 256, (size, size), np.uint8)


def _picture(number, view="frontal"):
  return source.Picture(view, f"{number}.png", functools.partial(_pixels, number))


def _constant(size):
  return np.full((size, size), 7, np.uint8)


def _unreadable(size):
  raise BadRow("damaged image", "The image x.png cannot be read; replace the file.")


BAD_PICTURES = {
    "constant image": source.Picture("frontal", "c.png", _constant),
    "damaged image": source.Picture("frontal", "x.png", _unreadable),
}


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _check_account(account):
  for level in account.values():
    assert level["read"] == level["written"] + level["refused"]
    assert sum(level["reasons"].values()) == level["refused"]


def test_what_was_written_is_read_back(studies_dir, fake_source):
  expected = {study.study_id: study for study in fake_source().studies}
  seen = []
  for split in source.SPLITS:
    table = studies.load_studies(studies_dir, split)
    seen += table.study_ids
    for i, study_id in enumerate(table.study_ids):
      study = expected[study_id]
      assert study.split == split
      assert table.patient_ids[i] == study.patient_id
      assert table.reports[i] == study.report().findings
      np.testing.assert_array_equal(table.images[i], study.pictures[0].read(16))
      np.testing.assert_array_equal(table.labels[i], study.labels)
    assert table.labels.dtype == np.int8 and table.images.dtype == np.uint8
  assert sorted(seen) == sorted(expected)


def test_card_counts_and_accounts(studies_dir):
  card = studies.read_card(studies_dir)
  assert card["splits"] == {"train": 30, "val": 10, "test": 10}
  assert card["size"] == 16 and card["versions"]["numpy"] == np.__version__
  everything = {"read": 50, "written": 50, "refused": 0, "reasons": {}}
  assert card["account"] == {name: everything for name in ("rows", "studies", "pictures")}
  assert not (studies_dir / records.QUARANTINE).exists()


def test_pictures_sections_views_and_priors_are_kept(fake_source, tmp_path):
  report = source.given_sections(indication="Why.", findings="One  thing.", impression="Two.")
  changes = {
      0: {"patient_id": "p", "order": 2, "report": report,
          "pictures": (_picture(100, "lateral"), _picture(101))},
      1: {"patient_id": "p", "order": 1, "report": source.given_sections(findings="Before.")},
      3: {"report": None, "labels": None},
      5: {"pictures": ()},
  }  # fmt: skip
  write_studies(fake_source(6, changes), tmp_path / "out", LOAD, WriteOptions())
  rows = {row["study_id"]: row for row in studies.open_studies(tmp_path / "out", "train")}
  row = rows["s0"]
  assert row["views"].tolist() == [0, 1]
  np.testing.assert_array_equal(studies.first_picture(row), _pixels(101, 16))
  assert (row["report"], row["prior"]) == ("One thing. Two.", "Before.")
  assert (row["indication"], row["findings"], row["impression"]) == ("Why.", "One thing.", "Two.")
  assert rows["s1"]["prior"] == "" and rows["s3"]["report"] == ""
  assert set(rows["s3"]["labels"].tolist()) == {-2}
  assert rows["s5"]["pictures"] == []
  assert studies.load_studies(tmp_path / "out", "train").study_ids == ["s0", "s1"]
  of_reports = studies.open_studies(tmp_path / "out", "train", ("report",))
  assert [row["study_id"] for row in of_reports] == ["s0", "s1", "s5"]


def test_options_of_reports(fake_source, tmp_path):
  report = source.given_sections(indication="Why.", findings="Short.", impression="Longer text.")
  changes = {i: {"report": report} for i in range(5)} | {
      1: {"report": None}, 3: {"report": source.given_sections(impression="No.")}
  }  # fmt: skip
  load = LoadOptions(16, ("impression", "findings"), min_report=5, reports_from_labels=True)
  write_studies(fake_source(5, changes), tmp_path / "out", load, WriteOptions())
  texts = [row["report"] for row in studies.open_studies(tmp_path / "out", "train")]
  assert texts[0] == "Longer text. Short."
  assert len(texts[1]) > 10 and len(texts[2]) > 10  # By the grammar, from the labels.
  with pytest.raises(UserError, match="'comparison' is no section"):
    LoadOptions(16, ("comparison",))


def test_labels_come_from_the_report_where_there_are_none(fake_source, tmp_path):
  english = source.given_sections(findings="There is pulmonary edema.")
  spanish = source.given_sections(findings="There is pulmonary edema.", language="es")
  changes = {i: {"report": r, "labels": None} for i, r in ((0, english), (1, spanish))}
  write_studies(fake_source(2, changes), tmp_path / "out", LOAD, WriteOptions())
  rows = list(studies.open_studies(tmp_path / "out", "train"))
  assert rows[0]["labels"][5] == 1 and set(rows[1]["labels"].tolist()) == {-2}
  assert rows[1]["language"] == "es"


def test_what_is_refused_is_left_out_and_accounted_for(fake_source, tmp_path):
  def unreadable():
    raise BadRow("missing report", "row 9: its report is not on disk; fetch the file.")

  long = source.given_sections(findings="word " * 20_000)
  bad = tuple(BAD_PICTURES.values())
  changes = {
      0: {"pictures": (_picture(100), bad[0])},
      1: {"pictures": (bad[1],)},
      6: {"report": long},
      9: {"report": unreadable},
      13: {"pictures": (), "report": None},
  }
  data = dataclasses.replace(
      fake_source(20, changes), refused=(source.Refusal("row", "row 99", "label", "bad"),),
      num_rows=21,
  )  # fmt: skip
  options = WriteOptions(max_refused=0.5, shard_size=3)
  account = write_studies(data, tmp_path / "out", LOAD, options)["account"]
  _check_account(account)
  assert account["rows"]["reasons"] == {"label": 1}
  assert account["studies"] == {
      "read": 20, "written": 16, "refused": 4,
      "reasons": {"no picture left": 1, "report too long": 1, "missing report": 1,
                  "nothing to learn": 1},
  }  # fmt: skip
  assert account["pictures"]["reasons"] == {
      "constant image": 1, "damaged image": 1, "of a refused study": 2
  }  # fmt: skip
  quarantine = _lines(tmp_path / "out" / records.QUARANTINE)
  assert len(quarantine) == 9 and {row["where"] for row in quarantine} >= {"row 1", "row 99"}
  assert not any("word" in row["reason"] for row in quarantine)
  assert next(r for r in quarantine if r["kind"] == "damaged image")["file"] == "x.png"
  table = studies.load_studies(tmp_path / "out", "train")
  assert "s0" in table.study_ids and not {"s1", "s6", "s13"} & set(table.study_ids)


def test_too_many_refusals_stop_the_job_and_keep_what_is_done(fake_source, tmp_path):
  changes = {i: {"pictures": (BAD_PICTURES["damaged image"],)} for i in (5, 6, 8)}
  changes[6] = {"pictures": (dataclasses.replace(changes[6]["pictures"][0], file="y.png"),)}
  changes[8] = {"pictures": (dataclasses.replace(changes[5]["pictures"][0], file="z.png"),)}
  data = fake_source(30, changes)
  partial = tmp_path / ".out.partial"
  with pytest.raises(UserError, match=r"3 of 30 studies were refused.*quarantine\.jsonl says why"):
    write_studies(data, tmp_path / "out", LOAD, WriteOptions(max_refused=0.05, shard_size=4))
  assert len(_lines(partial / records.QUARANTINE)) == 6
  done = {path.name for path in partial.glob("*array_record*")}
  assert done and not (tmp_path / "out").exists()
  card = write_studies(data, tmp_path / "out", LOAD, WriteOptions(max_refused=0.1, shard_size=4))
  assert card["account"]["studies"]["refused"] == 3 and not partial.exists()


def test_rows_that_were_refused_stop_the_job_before_anything_is_read(fake_source, tmp_path):
  row = source.Refusal("row", "row 3", "label", "row 3 has a bad label.")
  data = dataclasses.replace(fake_source(10), refused=(row,), num_rows=11)
  with pytest.raises(UserError, match=r"1 of 11 rows were refused.*the first for: label"):
    write_studies(data, tmp_path / "out", LOAD, WriteOptions())


def test_leaks_stop_the_job_or_are_left_out(fake_source, tmp_path):
  changes = {
      4: {"patient_id": "twice"}, 5: {"patient_id": "twice"},
      9: {"pictures": (_picture(50),)}, 8: {"pictures": (dataclasses.replace(
          _picture(50), file="copy.png"),)},
  }  # fmt: skip
  data = fake_source(20, changes)
  with pytest.raises(UserError, match=r"1 studies are of a patient.*1 more have nearly"):
    write_studies(data, tmp_path / "out", LOAD, WriteOptions())
  found = _lines(tmp_path / ".out.partial" / "leaks.jsonl")
  assert {(row["kind"], row["study"], row["repeats"]) for row in found} == {
      ("patient", "s5", "s4"), ("picture", "s8", "s9")
  }  # fmt: skip
  options = WriteOptions(drop_leaks=True, max_refused=0.2)
  card = write_studies(data, tmp_path / "out", LOAD, options)
  _check_account(card["account"])
  assert card["account"]["studies"]["reasons"] == {"leak by patient": 1, "leak by picture": 1}
  table = studies.load_studies(tmp_path / "out", "train")
  assert len(table.study_ids) == card["splits"]["train"] == 10
  assert not {"s5", "s8"} & set(table.study_ids)
  np.testing.assert_array_equal(table.images[0], fake_source(1).studies[0].pictures[0].read(16))


def _contents(folder):
  return {path.name: path.read_bytes() for path in folder.glob("*")}


def test_worker_processes_give_the_same_files(write_annotation, tmp_path):
  data = r2gen.studies(write_annotation(40), tmp_path)
  for number in (1, 2):
    write_studies(data, tmp_path / f"out{number}", LOAD, WriteOptions(workers=number))
  assert _contents(tmp_path / "out1") == _contents(tmp_path / "out2")


def test_processes_that_share_the_work_give_the_same_files(fake_source, tmp_path):
  alone, shared = WriteOptions(shard_size=4), tmp_path / "shared"
  write_studies(fake_source(), tmp_path / "alone", LOAD, alone)
  cards = [
      write_studies(
          fake_source(), shared, LOAD,
          dataclasses.replace(alone, process_index=index, process_count=3),
      )
      for index in (2, 0, 1)
  ]  # fmt: skip
  assert cards[:2] == [None, None] and cards[2]["splits"] == {"train": 30, "val": 10, "test": 10}
  assert _contents(tmp_path / "alone") == _contents(shared)
  with pytest.raises(UserError, match="--process_index=3 must lie"):
    options = dataclasses.replace(alone, process_index=3, process_count=3)
    write_studies(fake_source(), tmp_path / "more", LOAD, options)


def test_goes_on_where_it_was_stopped_without_reading_again(tmp_path, fake_source):
  reads = []

  def read(number, size):
    reads.append(number)
    if number == 25 and reads.count(25) == 1:
      raise KeyboardInterrupt
    return _pixels(number, size)

  changes = {
      i: {"pictures": (source.Picture("frontal", f"{i}", functools.partial(read, i)),)}
      for i in range(50)
  }
  options = WriteOptions(shard_size=5)
  data = fake_source(50, changes)
  with pytest.raises(KeyboardInterrupt):
    write_studies(data, tmp_path / "out", LOAD, options)
  assert not (tmp_path / "out").exists()
  with pytest.raises(UserError, match="unfinished studies of other input, settings or version"):
    write_studies(data, tmp_path / "out", LoadOptions(32), options)
  before = len(reads)
  write_studies(data, tmp_path / "out", LOAD, options)
  assert before + len(reads[before:]) < 50 + 6
  assert sorted(set(reads)) == list(range(50))
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  again = studies.load_studies(tmp_path / "out", "train")
  assert again.study_ids == [f"s{i}" for i in range(50) if i % 5 in (0, 1, 3)]


def test_finished_output_is_left_alone_and_other_output_refused(tmp_path, fake_source):
  def never(size):
    raise AssertionError("read again")

  output = tmp_path / "out"
  first = write_studies(fake_source(5), output, LOAD, WriteOptions())
  unread = {i: {"pictures": (source.Picture("frontal", f"{i}.png", never),)} for i in range(5)}
  unread = fake_source(5, unread)
  assert write_studies(unread, output, LOAD, WriteOptions()) == first
  with pytest.raises(UserError, match="other input or settings"):
    write_studies(unread, output, LoadOptions(32), WriteOptions())
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("keep")
  with pytest.raises(UserError, match="holds no records"):
    write_studies(unread, tmp_path / "mine", LOAD, WriteOptions())
  assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_second_process_does_not_finish_at_the_same_time(tmp_path, fake_source):
  data = fake_source(10)
  options = WriteOptions(shard_size=5)
  share = dataclasses.replace(options, process_count=2)
  write_studies(data, tmp_path / "out", LOAD, share)
  with open(tmp_path / ".out.partial" / "finishing", "w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    second = dataclasses.replace(share, process_index=1)
    assert write_studies(data, tmp_path / "out", LOAD, second) is None
  assert write_studies(data, tmp_path / "out", LOAD, share)["splits"]["train"] == 6


def test_reading_what_is_not_there(tmp_path, studies_dir):
  with pytest.raises(UserError, match="holds no studies"):
    studies.open_studies(tmp_path, "train")
  with pytest.raises(UserError, match="it has train, val, test"):
    studies.open_studies(studies_dir, "valid")
  with pytest.raises(UserError, match="holds studies, not tokens"):
    records.read_card(studies_dir, "tokens")


def test_a_truncated_record_file_is_named(tmp_path, fake_source):
  write_studies(fake_source(5), tmp_path / "out", LOAD, WriteOptions())
  path = next((tmp_path / "out").glob("*train*"))
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=f"{path.name} is damaged"):
    studies.open_studies(tmp_path / "out", "train")


@pytest.mark.parametrize("number", [1, 2])
def test_ordered_map_keeps_the_order(number):
  items = range(400)
  assert list(workers.ordered_map(operator.neg, items, number)) == [-i for i in items]


def test_an_error_of_a_worker_process_comes_through():
  with pytest.raises(TypeError, match="bad operand"):
    list(workers.ordered_map(operator.neg, [*range(300), "a"], 2))


def test_a_killed_worker_is_a_user_error():
  with pytest.raises(UserError, match="fewer --workers"):
    list(workers.ordered_map(os._exit, [0] * 40, 2))
