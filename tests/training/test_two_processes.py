"""Two processes on this machine, a device each: they train, stop and refuse as one."""

import dataclasses
import json
import os
import re
import signal
import socket
import time

import pytest
from small_runs import (
  STEPS,
  assert_same_losses,
  count_lines,
  read_validations,
  start,
  validate,
  write_config,
)

from chexmix_jax.parallel.mesh import MeshConfig
from chexmix_jax.training.checkpoint import saved_steps
from chexmix_jax.training.validation import ValidationConfig


@pytest.fixture
def start_two(config, tmp_path):
  """Starts both processes on the config with changes; the second with more arguments."""
  processes = []

  def start_them(*more, **changes):
    mesh = MeshConfig(data=1, fsdp=2)
    write_config(dataclasses.replace(config, mesh=mesh, **changes), tmp_path / "config.py")
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    for index in range(2):
      where = (f"--coordinator={address}", f"--process_index={index}", "--process_count=2")
      arguments = where + (more if index else ())
      said = tmp_path / f"said{index}"
      processes.append(
          start(tmp_path / "config.py", tmp_path / "run", said, *arguments, devices=1)
      )
    return processes

  yield start_them
  for process in processes:
    process.kill()
    process.wait()


def end_of(processes, tmp_path):
  """Their exit statuses, and all that each said."""
  statuses = [process.wait(timeout=300) for process in processes]
  said = [(tmp_path / f"said{index}").read_text() for index in range(2)]
  return statuses, [re.sub(r"(?m)^\[Gloo\].*\n", "", text) for text in said]


def test_two_processes_train_to_the_losses_of_one(config, start_two, whole_run, tmp_path):
  config = dataclasses.replace(config, validation=ValidationConfig(studies=8))
  statuses, (first, second) = end_of(start_two(validation=config.validation), tmp_path)
  assert statuses == [0, 0], first + second
  run_dir = tmp_path / "run"
  assert_same_losses(run_dir, whole_run)
  lines = read_validations(run_dir)
  assert [line["step"] for line in lines] == [0, 3, 6, 9]
  assert lines[0] == pytest.approx(validate(config)[0], abs=1e-5)
  # One process writes what there is once.
  assert "parameters on 2 device(s)" in first and second == ""
  assert len(list((run_dir / "tensorboard").iterdir())) == 1
  # Each writes its half of the arrays, and the other never sees it.
  folder = run_dir / "checkpoints" / str(STEPS) / "params"
  sizes = [
      sum(path.stat().st_size for path in folder.glob(f"ocdbt.process_{index}/d/*"))
      for index in range(2)
  ]
  assert 0.4 < sizes[0] / sum(sizes) < 0.6


def test_sigterm_to_one_process_stops_both_at_one_checkpoint(start_two, tmp_path):
  run_dir = tmp_path / "run"
  processes = start_two(steps=5000, checkpoint_every=5000)
  deadline = time.monotonic() + 300
  while count_lines(run_dir) < 2:
    assert [process.poll() for process in processes] == [None, None]
    assert time.monotonic() < deadline
    time.sleep(0.01)
  for _ in range(3):  # It may come more than once.
    os.kill(processes[1].pid, signal.SIGTERM)
    time.sleep(0.3)
  statuses, said = end_of(processes, tmp_path)
  assert statuses == [143, 143], said
  (step,) = saved_steps(run_dir)
  sentence = f"stopped by SIGTERM after step {step}; the same command goes on from {run_dir}"
  assert all(text.count(sentence) == 1 for text in said)
  window = json.loads((run_dir / f"checkpoints/{step}/window/metadata").read_text())
  assert len(window["rows"]) == step % 2 and 0 < step < 5000


def test_a_process_with_another_config_is_refused_by_all(start_two, tmp_path):
  processes = start_two("--config.seed=1", "--config.optimizer.b1=0.5")
  statuses, said = end_of(processes, tmp_path)
  assert statuses == [2, 2], said
  sentence = (
      "error: Process 1 differs from process 0 in train.optimizer.b1, train.seed: start all"
      " processes with the same command, code and versions.\n"
  )
  assert said == [sentence, sentence]
  assert not (tmp_path / "run").exists()
