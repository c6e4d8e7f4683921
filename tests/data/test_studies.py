import filecmp
import operator
import os

import numpy as np
import pytest

from chexmix_jax.data import records, studies, workers
from chexmix_jax.data.sources import r2gen, source
from chexmix_jax.errors import UserError


def test_what_was_written_is_read_back(studies_dir, fake_source):
  expected = {s.study_id: (s, s.load(16)) for s in fake_source().studies}
  seen = []
  for split in source.SPLITS:
    table = studies.load_studies(studies_dir, split)
    seen += table.study_ids
    for i, study_id in enumerate(table.study_ids):
      study, content = expected[study_id]
      assert study.split == split
      assert table.patient_ids[i] == study.patient_id
      assert table.reports[i] == content.report
      np.testing.assert_array_equal(table.images[i], content.image)
      np.testing.assert_array_equal(table.labels[i], content.labels)
    assert table.labels.dtype == np.int8 and table.images.dtype == np.uint8
  assert sorted(seen) == sorted(expected)


def test_card_counts_the_splits(studies_dir):
  card = studies.read_card(studies_dir)
  assert card["splits"] == {"train": 30, "val": 10, "test": 10}
  assert card["size"] == 16


def test_worker_processes_give_the_same_files(write_annotation, tmp_path):
  data = r2gen.studies(write_annotation(40), label_fn=None)
  for number in (1, 2):
    studies.write_studies(data, tmp_path / f"out{number}", 16, num_workers=number)
  names = [path.name for path in (tmp_path / "out1").iterdir()]
  same, different, missing = filecmp.cmpfiles(
      tmp_path / "out1", tmp_path / "out2", names, shallow=False
  )
  assert sorted(same) == sorted(names) and not different and not missing


def test_finished_output_is_left_alone_and_other_output_refused(tmp_path, fake_source):
  def never(size):
    raise AssertionError("read again")

  output = tmp_path / "out"
  first = studies.write_studies(fake_source(5), output, 16, num_workers=1)
  again = fake_source(5, **{})
  unread = source.Source(
      again.description,
      tuple(source.Study(s.study_id, s.patient_id, s.split, s.where, never) for s in again.studies),
  )
  assert studies.write_studies(unread, output, 16, num_workers=1) == first
  with pytest.raises(UserError, match="other input or settings"):
    studies.write_studies(unread, output, 32, num_workers=1)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("keep")
  with pytest.raises(UserError, match="holds no records"):
    studies.write_studies(unread, tmp_path / "mine", 16, num_workers=1)
  assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("failure", [UserError("row 7 is bad"), KeyboardInterrupt()])
def test_failure_leaves_nothing_behind(tmp_path, fake_source, failure):
  def fail(size):
    raise failure

  data = fake_source(10)
  broken = [
      source.Study(s.study_id, s.patient_id, s.split, s.where, fail) if i == 7 else s
      for i, s in enumerate(data.studies)
  ]
  with pytest.raises(type(failure)):
    studies.write_studies(
        source.Source(data.description, tuple(broken)), tmp_path / "out", 16, num_workers=1
    )
  assert list(tmp_path.iterdir()) == []
  assert studies.write_studies(data, tmp_path / "out", 16, num_workers=1)["splits"]["train"] == 6


def test_an_empty_report_names_its_row(tmp_path, write_annotation):
  data = r2gen.studies(write_annotation(report="  "), label_fn=None)
  with pytest.raises(UserError, match=r"annotation\.json test\[0\] has an empty report"):
    studies.write_studies(data, tmp_path / "out", 16, num_workers=1)
  assert not (tmp_path / "out").exists()


def test_an_id_that_stands_twice_names_both_rows(tmp_path, write_annotation):
  data = r2gen.studies(write_annotation(id="p0_0"), label_fn=None)
  with pytest.raises(UserError, match=r"train\[0\] and .*test\[0\]"):
    studies.write_studies(data, tmp_path / "out", 16, num_workers=1)


def test_reading_what_is_not_there(tmp_path, studies_dir, fake_source):
  with pytest.raises(UserError, match="holds no studies"):
    studies.open_studies(tmp_path, "train")
  with pytest.raises(UserError, match="it has train, val, test"):
    studies.open_studies(studies_dir, "valid")
  with pytest.raises(UserError, match="holds studies, not tokens"):
    records.read_card(studies_dir, "tokens")


def test_a_truncated_record_file_is_named(tmp_path, fake_source):
  studies.write_studies(fake_source(5), tmp_path / "out", 16, num_workers=1)
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
