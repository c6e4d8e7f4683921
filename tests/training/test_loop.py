"""The training loop end to end on a tiny model: what it writes, and that a stopped run goes on."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from small_runs import (
    STEPS,
    assert_same_end,
    assert_same_losses,
    count_lines,
    read_item,
    read_lines,
    start,
    write_config,
)

from chexmix_jax import config as config_lib
from chexmix_jax.data import pipeline
from chexmix_jax.errors import Stopped, UserError
from chexmix_jax.models import flops
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.parallel.hardware import CHIPS
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.training import loop, setup
from chexmix_jax.training.checkpoint import Checkpoints, read_job, saved_steps
from chexmix_jax.training.loop import train


def when_started(monkeypatch, at_step, function):
  """Makes the loop call `function` when it has started step `at_step`."""
  add = loop.MetricsWindow.add

  def calling(window, step, metrics):
    if step == at_step:
      function()
    add(window, step, metrics)

  monkeypatch.setattr(loop.MetricsWindow, "add", calling)


def interrupt_at(monkeypatch, stop_step):
  """Makes the loop meet a Ctrl-C when it has started step `stop_step`."""

  def interrupt():
    raise KeyboardInterrupt

  when_started(monkeypatch, stop_step, interrupt)


def terminate():
  """What a machine that is about to go sends."""
  os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_learns_and_writes_its_job_lines_and_checkpoints(config, whole_run):
  lines = read_lines(whole_run)
  # Every second step and every checkpoint.
  assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9]
  assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
  for line in lines:
    assert set(line) == {
        "step", "loss", "image_nll", "text_nll", "grad_norm", "learning_rate", "skipped", "fill",
        "step_seconds", "tokens_per_second", "tokens_per_second_per_device",
    }  # fmt: skip
    per_device = line["tokens_per_second_per_device"]
    assert per_device * jax.device_count() == pytest.approx(line["tokens_per_second"])
    assert 0.3 < line["fill"] <= 1
    assert min(line["image_nll"], line["text_nll"]) <= line["loss"] + 0.5
  assert lines[0]["learning_rate"] == pytest.approx(0.5e-2)  # Half of the warm-up is done.
  assert saved_steps(whole_run) == [6, 9]
  job = read_job(whole_run)
  vocabulary = job["tokens"]["vocabulary"]
  expected = dataclasses.replace(config.model, vocab_size=vocabulary["size"])
  assert config_lib.build(TransformerConfig, job["train"]["model"]) == expected
  assert list((whole_run / "tensorboard").glob("events*"))


def test_a_line_has_the_share_of_the_peak_where_the_device_is_known(config, monkeypatch):
  model = TransformerConfig(vocab_size=64)
  config = dataclasses.replace(config, model=model)
  monkeypatch.setattr(loop, "chip_of", lambda kind: CHIPS["v5e"])
  sums = dict.fromkeys(("loss_sum", "weight", "image_nll", "image_tokens", "text_nll",
                        "text_tokens", "grad_norm", "loss"), 1.0)  # fmt: skip
  rows = [{**sums, "tokens": 40.0, "context": 10.0}, {**sums, "tokens": 60.0, "context": 30.0}]
  line = loop._summary(config, make_mesh(), 2, rows, 0.5, 0)
  operations = 50 * flops.train_flops_per_token(model, 20)
  assert line["mfu"] == pytest.approx(operations / 0.5 / jax.device_count() / 197e12)


def test_a_finished_run_is_left_as_it_is(config, whole_run):
  before = (whole_run / "metrics.jsonl").read_bytes()
  train(config, whole_run)
  assert (whole_run / "metrics.jsonl").read_bytes() == before
  assert saved_steps(whole_run) == [6, 9]


@pytest.mark.parametrize("stop_step", [2, 5, 9])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    config, whole_run, tmp_path, monkeypatch, stop_step
):
  with monkeypatch.context() as patch:
    interrupt_at(patch, stop_step)
    with pytest.raises(KeyboardInterrupt):
      train(config, tmp_path / "run")
  assert saved_steps(tmp_path / "run") == [s for s in (3, 6) if s < stop_step]
  train(config, tmp_path / "run")
  assert_same_end(tmp_path / "run", whole_run)


@pytest.mark.parametrize("stop_step", [3, 5, 8])  # At a checkpoint; amid and at a line.
def test_sigterm_saves_the_step_and_the_run_goes_on_bit_for_bit(
    config, whole_run, tmp_path, monkeypatch, stop_step
):
  before = signal.getsignal(signal.SIGTERM)
  wait = Checkpoints.wait

  def wait_and_be_told_again(checkpoints):
    terminate()
    wait(checkpoints)

  with monkeypatch.context() as patch:
    when_started(patch, stop_step, terminate)
    patch.setattr(Checkpoints, "wait", wait_and_be_told_again)
    with pytest.raises(Stopped, match=f"after step {stop_step}; .*/checkpoints/{stop_step}$"):
      train(config, tmp_path / "run")
  assert signal.getsignal(signal.SIGTERM) == before
  assert saved_steps(tmp_path / "run")[-1] == stop_step
  train(config, tmp_path / "run")
  assert_same_end(tmp_path / "run", whole_run)


def test_ctrl_c_while_sigterm_saves_leaves_the_checkpoint_whole(
    config, whole_run, tmp_path, monkeypatch
):
  def wait_and_be_interrupted(checkpoints):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    when_started(patch, 4, terminate)
    patch.setattr(Checkpoints, "wait", wait_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
      train(config, tmp_path / "run")
  assert saved_steps(tmp_path / "run") == [3, 4]
  train(config, tmp_path / "run")
  assert_same_end(tmp_path / "run", whole_run)


def test_sigterm_before_the_first_step_saves_nothing(config, whole_run, tmp_path, monkeypatch):
  first_state = setup.Setup.first_state

  def first_state_and_sigterm(*args):
    terminate()
    return first_state(*args)

  with monkeypatch.context() as patch:
    patch.setattr(setup.Setup, "first_state", first_state_and_sigterm)
    with pytest.raises(Stopped, match="after step 0; the same command goes on from the start"):
      train(config, tmp_path / "run")
  assert saved_steps(tmp_path / "run") == []
  train(config, tmp_path / "run")
  assert_same_end(tmp_path / "run", whole_run)


def test_sigterm_in_the_last_step_lets_the_run_end(config, whole_run, tmp_path, monkeypatch):
  when_started(monkeypatch, STEPS, terminate)
  train(config, tmp_path / "run")
  assert_same_end(tmp_path / "run", whole_run)


def test_a_run_goes_on_with_fewer_and_fewer_devices(config, whole_run, tmp_path, monkeypatch):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  for stop_step, mesh in ((4, (2, 2, 2)), (7, (1, 4, 1)), (None, (1, 1, 2))):
    resharded = dataclasses.replace(config, mesh=MeshConfig(*mesh))
    with monkeypatch.context() as patch:
      if stop_step:
        when_started(patch, stop_step, terminate)
        with pytest.raises(Stopped, match=f"after step {stop_step}"):
          train(resharded, tmp_path / "run")
      else:
        train(resharded, tmp_path / "run")
  assert_same_losses(tmp_path / "run", whole_run)


def test_a_run_killed_at_a_random_step_ends_like_an_uninterrupted_one(config, tmp_path):
  config = dataclasses.replace(config, steps=24, log_every=1, checkpoint_every=6)
  write_config(config, tmp_path / "config.py")
  train(config, tmp_path / "whole")
  run_dir, kill_step = tmp_path / "killed", random.randrange(1, 11)
  child = start(tmp_path / "config.py", run_dir, tmp_path / "said")
  try:
    deadline = time.monotonic() + 600
    while count_lines(run_dir) < kill_step:
      assert child.poll() is None, (tmp_path / "said").read_text()
      assert time.monotonic() < deadline
      time.sleep(0.002)
  finally:
    child.kill()
    child.wait()
  assert child.returncode == -signal.SIGKILL
  assert count_lines(run_dir) < config.steps
  train(config, run_dir)
  assert_same_end(run_dir, tmp_path / "whole")


def breaking_batches(monkeypatch, steps):
  """Makes the batches of these steps hold a weight that is not a number."""
  jit_train_step = setup.jit_train_step

  def jit_breaking(*args):
    step_fn = jit_train_step(*args)

    def step(state, batch):
      if int(state.step) + 1 in steps:
        batch = batch | {"weights": batch["weights"] * np.nan}
      return step_fn(state, batch)

    return step

  monkeypatch.setattr(setup, "jit_train_step", jit_breaking)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    config, whole_run, tmp_path, monkeypatch, capsys
):
  breaking_batches(monkeypatch, {7, 8})
  train(config, tmp_path / "run")
  assert "step 7 is skipped" in capsys.readouterr().err
  lines = {line["step"]: line for line in read_lines(tmp_path / "run")}
  assert [line["skipped"] for line in lines.values()] == [0, 0, 0, 0, 2, 2]
  # Both steps of the line are skipped: it has no loss. The next has that of its one step.
  assert "loss" not in lines[8] and np.isfinite(lines[9]["loss"])
  before = {line["step"]: line for line in read_lines(whole_run)}
  assert lines[6]["loss"] == before[6]["loss"]
  # The optimizer has done seven steps, and the learning rate is that of the seventh.
  train_item = read_item(tmp_path / "run", STEPS, "train")
  assert train_item["step"] == STEPS
  counts = {int(leaf) for leaf in jax.tree.leaves(train_item["opt_state"]) if leaf.ndim == 0}
  assert counts == {STEPS - 2}
  schedule = loop.learning_rate_schedule(config.optimizer, config.steps)
  assert lines[9]["learning_rate"] == pytest.approx(float(schedule(6)))


def test_too_many_skipped_steps_in_a_row_end_the_run(config, tmp_path, monkeypatch):
  breaking_batches(monkeypatch, {3, 5, 6, 7})
  config = dataclasses.replace(config, max_skipped=2)
  run_dir = tmp_path / "run"
  with pytest.raises(UserError, match=r"not finite at step 6 .* good checkpoint is .*/3\."):
    train(config, run_dir)
  assert saved_steps(run_dir) == [3]
  for leaf in jax.tree.leaves(read_item(run_dir, 3, "params")):
    assert np.all(np.isfinite(leaf))


@pytest.fixture
def small_disk(tmp_path):
  """A folder on a file system of 4 MB."""
  folder = tmp_path / "disk"
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
  try:
    subprocess.run(command, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("needs the right to mount a file system")
  yield folder
  subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole(
    config, whole_run, small_disk, monkeypatch
):
  filler, run_dir = small_disk / "filler", small_disk / "run"

  save = Checkpoints.save

  def filling(checkpoints, state, *rest):
    if int(state.step) == 6:
      checkpoints.wait()  # A save gives room back when it ends.
      free = os.statvfs(small_disk)
      filler.write_bytes(bytes(free.f_bavail * free.f_bsize - (1 << 16)))
    save(checkpoints, state, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, "save", filling)
    with pytest.raises(UserError, match=r"disk of .*run is full; .* goes on from .*checkpoints/3"):
      train(config, run_dir)
  assert saved_steps(run_dir) == [3]
  filler.unlink()
  train(config, run_dir)
  assert_same_end(run_dir, whole_run)


def test_a_line_for_a_full_disk_ends_the_run(config, whole_run, tmp_path, monkeypatch):
  class FullLog(loop.RunLog):
    def write(self, step, scalars):
      if step == 4:
        self._file = open("/dev/full", "a")  # noqa: SIM115
      super().write(step, scalars)

  with monkeypatch.context() as patch:
    patch.setattr(loop, "RunLog", FullLog)
    with pytest.raises(UserError, match=r"disk of .*run is full; .* goes on from .*checkpoints/3"):
      train(config, tmp_path / "run")
  train(config, tmp_path / "run")
  assert_same_end(tmp_path / "run", whole_run)


def test_the_plan_is_made_once(config, tmp_path, monkeypatch):
  make_plan, plans = pipeline.make_plan, []

  def counting(*args):
    plans.append(make_plan(*args))
    return plans[-1]

  monkeypatch.setattr(setup, "make_plan", counting)
  monkeypatch.setattr(pipeline, "make_plan", counting)
  monkeypatch.setattr(loop, "_run", lambda *args: None)
  train(config, tmp_path / "run")
  assert len(plans) == 1


def test_another_config_in_the_same_run_is_refused(config, whole_run):
  other = dataclasses.replace(config, seed=1, accumulation=1)
  with pytest.raises(UserError, match=r"another train\.seed;"):
    train(other, whole_run)


def test_a_run_starts_from_the_parameters_of_another(config, whole_run, tmp_path, monkeypatch):
  states = []
  monkeypatch.setattr(loop, "_run", lambda setup, state, *rest: states.append(state))
  train(dataclasses.replace(config, init=str(whole_run), seed=5), tmp_path / "run")
  (state,) = states
  expected = read_item(whole_run, STEPS, "params")
  for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert state.step == 0
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_a_stopped_run_goes_on_without_the_run_that_it_started_from(
    config, whole_run, tmp_path, monkeypatch
):
  first = tmp_path / "first"
  first.symlink_to(whole_run)
  config = dataclasses.replace(config, init=str(first))
  with monkeypatch.context() as patch:
    interrupt_at(patch, 5)
    with pytest.raises(KeyboardInterrupt):
      train(config, tmp_path / "run")
  os.unlink(first)
  train(config, tmp_path / "run")
  assert saved_steps(tmp_path / "run") == [6, 9]


def _with_model(config, **changes):
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def _with_data(config, **changes):
  return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: _with_model(c, mlp_dim=128), r"layers\.mlp\.down\.kernel is not \(2, 128, 32\)"),
        (lambda c: _with_model(c, num_layers=1), r"layers\.attn\.k\.bias is not \(1, 4, 8\)"),
        (lambda c: _with_model(c, qk_norm=True), r"layers\.attn\.k_norm\.bias is not \(2, 8\)"),
        (lambda c: _with_model(c, vocab_size=999), "model.vocab_size=999.*set it to 0"),
        (lambda c: _with_data(c, context=12), "data.context=12 cannot hold"),
        (lambda c: _with_data(c, batch_size=0), "data.batch_size=0"),
        (lambda c: dataclasses.replace(c, accumulation=3), "data.batch_size=8 must be a posit"),
        (lambda c: dataclasses.replace(c, init="nowhere"), "nowhere is not a run directory"),
        (lambda c: _with_data(c, tokens="nothing"), "nothing holds no tokens"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    config, whole_run, tmp_path, change, message
):
  config = change(dataclasses.replace(config, init=str(whole_run)))
  with pytest.raises(UserError, match=message):
    train(config, tmp_path / "run")
  assert list(tmp_path.iterdir()) == []


def test_parameters_for_other_tokens_are_refused(config, whole_run, tmp_path):
  first = tmp_path / "first"
  first.mkdir()
  (first / "checkpoints").symlink_to(whole_run / "checkpoints")
  job = read_job(whole_run)
  job["tokens"]["text_tokenizer"] = "another"
  (first / "job.json").write_text(json.dumps(job))
  with pytest.raises(UserError, match="first was trained with another text tokenizer"):
    train(dataclasses.replace(config, init=str(first)), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["steps", "accumulation", "log_every", "checkpoint_every", "max_skipped"]
)
def test_a_number_of_steps_below_one_is_refused(config, name):
  with pytest.raises(UserError, match=f"{name}=0"):
    dataclasses.replace(config, **{name: 0})
