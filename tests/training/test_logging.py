"""Lines of metrics: each step counted once, also over a restart."""

import json

import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.training.logging import MetricsWindow, RunLog, count_parameters


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


def summarise(step, rows, seconds):
  assert seconds >= 0
  return {"count": len(rows), "total": sum(row["loss"] for row in rows)}


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
  with pytest.raises(UserError, match=r"not finite at step 2 .*lower learning_rate"):
    window.drain()
  assert [line["step"] for line in read_lines(tmp_path)] == [1]


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
