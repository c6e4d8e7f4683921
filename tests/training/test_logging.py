"""Lines of metrics: each step counted once, also over a restart."""

import json
import re
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from chexmix_jax.training.logging import (
    MetricsWindow,
    NotFiniteError,
    RunLog,
    count_parameters,
    is_finite,
)


@pytest.fixture
def open_log(tmp_path):
  logs = []

  def open_it(first_step=0):
    logs.append(RunLog(tmp_path, first_step, 20, "test"))
    return logs[-1]

  yield open_it
  for log in logs:
    log.close()


def read_lines(tmp_path):
  return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def summarise(step, rows, seconds, skipped):
  assert seconds >= 0
  total = sum(row["loss"] for row in rows if is_finite(row))
  return {"count": len(rows), "total": total} | ({"skipped": skipped} if skipped else {})


def metrics(step, **changes):
  return {"loss": np.float32(step), "grad_norm": np.float32(1), **changes}


def test_every_step_is_in_one_line(tmp_path, open_log):
  window = MetricsWindow(open_log(), 4, summarise)
  for step in range(1, 12):
    window.add(step, metrics(step))
    if step in (6, 11):  # As before a checkpoint.
      window.drain()
  assert read_lines(tmp_path) == [
      {"step": 4, "count": 4, "total": 10.0},
      {"step": 6, "count": 2, "total": 11.0},
      {"step": 8, "count": 2, "total": 15.0},
      {"step": 11, "count": 3, "total": 30.0},
  ]


def test_metrics_are_fetched_two_steps_late(tmp_path, open_log):
  window = MetricsWindow(open_log(), 1, summarise)
  for step in range(1, 6):
    window.add(step, metrics(step))
    assert [line["step"] for line in read_lines(tmp_path)] == list(range(1, step - 1))


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_names_its_step(tmp_path, open_log, name, value):
  window = MetricsWindow(open_log(), 1, summarise)
  window.add(1, metrics(1))
  window.add(2, metrics(2, **{name: np.float32(value)}))
  with pytest.raises(NotFiniteError, match=r"not finite at step 2 .*lower learning_rate"):
    window.drain()
  assert [line["step"] for line in read_lines(tmp_path)] == [1]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_skipped_steps_are_counted_and_named(tmp_path, open_log, capsys, name):
  window = MetricsWindow(open_log(), 3, summarise, max_skipped=3)
  for step in range(1, 10):
    bad = {name: np.float32(np.nan)} if step in (2, 3, 5, 7, 8) else {}
    window.add(step, metrics(step, **bad))
  window.drain()
  assert read_lines(tmp_path) == [
      {"step": 3, "count": 3, "total": 1.0, "skipped": 2},
      {"step": 6, "count": 3, "total": 10.0, "skipped": 3},
      {"step": 9, "count": 3, "total": 9.0, "skipped": 5},
  ]
  said = re.findall(r"WARNING: step (\d) is skipped", capsys.readouterr().err)
  assert said == ["2", "3", "5", "7", "8"]


def test_too_many_skipped_steps_in_a_row_end_the_run_also_over_a_restart(tmp_path, open_log):
  window = MetricsWindow(open_log(), 9, summarise, max_skipped=3)
  for step, loss in enumerate((1, np.nan, np.nan), start=1):
    window.add(step, metrics(loss))
  state = json.loads(json.dumps(window.get_state()))
  window = MetricsWindow(open_log(3), 9, summarise, max_skipped=3, state=state)
  window.add(4, metrics(np.inf))
  with pytest.raises(NotFiniteError, match=r"step 4 .batch 4 .* and in the 2 before it; train"):
    window.drain()


def test_a_line_over_a_restart_is_that_of_an_unbroken_run(tmp_path, open_log):
  window = MetricsWindow(open_log(), 4, summarise, max_skipped=2)
  for step in range(1, 7):
    window.add(step, metrics(step, loss=np.float32(0.1) * step))
  state = json.loads(json.dumps(window.get_state()))
  window = MetricsWindow(open_log(6), 4, summarise, max_skipped=2, state=state)
  for step in (7, 8):
    window.add(step, metrics(step, loss=np.float32(0.1) * step))
  window.drain()
  losses = [float(np.float32(0.1) * step) for step in range(1, 9)]
  assert read_lines(tmp_path) == [
      {"step": 4, "count": 4, "total": sum(losses[:4])},
      {"step": 8, "count": 4, "total": sum(losses[4:])},
  ]


def test_a_saved_window_stays_as_it_was(open_log):
  window = MetricsWindow(open_log(), 9, summarise)
  window.add(1, metrics(1))
  state = window.get_state()
  window.add(2, metrics(2))
  window.get_state()
  assert [row["loss"] for row in state["rows"]] == [1.0]


def test_a_process_without_a_log_stops_like_the_one_that_writes():
  window = MetricsWindow(None, 1, summarise)
  window.add(1, metrics(1))
  window.drain()
  window.add(2, metrics(np.nan))
  with pytest.raises(NotFiniteError):
    window.drain()


def test_tensorboard_gets_the_same_numbers(tmp_path, open_log):
  log = open_log(first_step=5)
  log.write(6, {"loss": 0.5})
  log.close()
  (path,) = (tmp_path / "tensorboard").glob("events*")
  events = list(_events(path.read_bytes()))
  assert events[0].file_version == "brain.Event:2"
  assert (events[1].step, events[1].session_log.status) == (6, SessionLog.START)
  (value,) = events[2].summary.value
  assert (events[2].step, value.tag, value.simple_value) == (6, "loss", 0.5)


def _events(data):
  """Of a file of records: length, its checksum, data, their checksum."""
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    yield Event.FromString(data[12 : 12 + length])
    data = data[16 + length :]


def test_lines_after_the_checkpoint_are_dropped_on_opening(tmp_path, open_log):
  log = open_log()
  for step in (5, 10, 15):
    log.write(step, {"loss": 1.0})
  log.close()
  open_log(first_step=10).write(15, {"loss": 2.0})
  assert read_lines(tmp_path) == [
      {"step": 5, "loss": 1.0}, {"step": 10, "loss": 1.0}, {"step": 15, "loss": 2.0},
  ]  # fmt: skip


def test_a_line_cut_short_is_dropped(tmp_path, open_log):
  log = open_log()
  log.write(5, {"loss": 1.0})
  log.close()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 10, "lo')
  open_log(first_step=5)
  assert read_lines(tmp_path) == [{"step": 5, "loss": 1.0}]
  assert [path.name for path in tmp_path.glob("*partial*")] == []


def test_parameters_are_counted():
  assert count_parameters({"a": np.zeros((2, 3)), "b": {"c": np.zeros(4)}}) == 10
