"""The training loop end to end on a tiny model: what it writes, and that a stopped run goes on."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from chexmix_jax import config as config_lib
from chexmix_jax.data.masking import MaskingConfig, ModalityMaskConfig
from chexmix_jax.data.pipeline import DataConfig
from chexmix_jax.errors import UserError
from chexmix_jax.models import flops
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.parallel.hardware import CHIPS
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.training import loop
from chexmix_jax.training.checkpoint import read_job, saved_steps
from chexmix_jax.training.loop import TrainConfig, train
from chexmix_jax.training.optimizer import OptimizerConfig

STEPS = 9
_MASKED = ModalityMaskConfig(prob=0.8, low=0.1, high=0.9)


@pytest.fixture(scope="session")
def config(tokens_dir):
  """A masked run of nine steps, with dropout, that saves every third."""
  return TrainConfig(
      model=TransformerConfig(
          vocab_size=0, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4, dropout=0.1
      ),
      data=DataConfig(
          tokens=str(tokens_dir), context=64, batch_size=8, packing_rows=8,
          masking=MaskingConfig(_MASKED, _MASKED),
      ),
      optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
      steps=STEPS, log_every=2, checkpoint_every=3,
  )  # fmt: skip


@pytest.fixture(scope="session")
def whole_run(config, tmp_path_factory):
  """The run directory of the config, never interrupted."""
  run_dir = tmp_path_factory.mktemp("whole") / "run"
  jit_train_step, step_fns = loop.jit_train_step, []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
        loop, "jit_train_step", lambda *args: step_fns.append(jit_train_step(*args)) or step_fns[0]
    )
    train(config, run_dir)
  assert step_fns[0]._cache_size() == 1  # Compiled once.
  return run_dir


def read_lines(run_dir):
  return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def read_item(run_dir, step, item):
  """One item of a checkpoint, as numpy arrays."""
  folder = run_dir.absolute() / "checkpoints" / str(step) / item
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(folder).item_metadata.tree
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(folder, ocp.args.PyTreeRestore(restore_args=arguments))


def assert_same_end(run_dir, expected):
  """Parameters, optimizer state, key, data position and all losses agree bit for bit."""
  step = saved_steps(expected)[-1]
  assert saved_steps(run_dir)[-1] == step
  for item in ("params", "train"):
    ours, theirs = (read_item(folder, step, item) for folder in (run_dir, expected))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(ours)[0], jax.tree.leaves(theirs), strict=True
    ):
      assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), (item, path)
  position = f"checkpoints/{step}/data/metadata"
  assert (run_dir / position).read_bytes() == (expected / position).read_bytes()
  timing = ("step_seconds", "tokens_per_second", "tokens_per_second_per_device")
  ours, theirs = (
      [{k: v for k, v in line.items() if k not in timing} for line in read_lines(folder)]
      for folder in (run_dir, expected)
  )
  assert ours == theirs


def interrupt_at(monkeypatch, stop_step):
  """Makes the loop meet a Ctrl-C when it has started step `stop_step`."""
  add = loop.MetricsWindow.add

  def stopping(window, step, metrics):
    if step == stop_step:
      raise KeyboardInterrupt
    add(window, step, metrics)

  monkeypatch.setattr(loop.MetricsWindow, "add", stopping)


def test_a_run_learns_and_writes_its_job_lines_and_checkpoints(config, whole_run):
  lines = read_lines(whole_run)
  # Every second step and every checkpoint.
  assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9]
  assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
  for line in lines:
    assert set(line) == {
        "step", "loss", "image_nll", "text_nll", "grad_norm", "learning_rate", "fill",
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
                        "text_tokens", "grad_norm"), 1.0)  # fmt: skip
  rows = [{**sums, "tokens": 40.0, "context": 10.0}, {**sums, "tokens": 60.0, "context": 30.0}]
  line = loop._summary(config, make_mesh(), 2, rows, 0.5)
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


def test_a_stopped_run_goes_on_with_other_devices(config, whole_run, tmp_path, monkeypatch):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  with monkeypatch.context() as patch:
    interrupt_at(patch, 5)
    with pytest.raises(KeyboardInterrupt):
      train(config, tmp_path / "run")
  train(dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=2)), tmp_path / "run")
  for ours, theirs in zip(read_lines(tmp_path / "run"), read_lines(whole_run), strict=True):
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_a_run_killed_at_a_random_step_ends_like_an_uninterrupted_one(config, tmp_path):
  config = dataclasses.replace(config, steps=24, log_every=1, checkpoint_every=6)
  file = tmp_path / "config.py"
  file.write_text(
      "import ml_collections\n\n\ndef get_config():\n"
      f"  return ml_collections.ConfigDict({config_lib.to_dict(config)!r})\n"
  )
  train(config, tmp_path / "whole")
  run_dir, kill_step = tmp_path / "killed", random.randrange(1, 11)
  command = [sys.executable, "-m", "chexmix_jax.train", f"--config={file}", f"--output={run_dir}"]
  root = pathlib.Path(__file__).parents[2]
  with open(tmp_path / "output", "w") as output:
    child = subprocess.Popen(command, cwd=root, stdout=output, stderr=output)
    try:
      lines = run_dir / "metrics.jsonl"
      deadline = time.monotonic() + 600
      while not (lines.exists() and lines.read_bytes().count(b"\n") >= kill_step):
        assert child.poll() is None, (tmp_path / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    finally:
      child.kill()
      child.wait()
  assert child.returncode == -signal.SIGKILL
  assert len(read_lines(run_dir)) < config.steps
  train(config, run_dir)
  assert_same_end(run_dir, tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(
    config, tmp_path, monkeypatch
):
  jit_train_step = loop.jit_train_step

  def breaking(*args):
    step_fn = jit_train_step(*args)

    def step(state, batch):
      if int(state.step) == 4:
        state = dataclasses.replace(state, params=jax.tree.map(lambda x: x * np.nan, state.params))
      return step_fn(state, batch)

    return step

  monkeypatch.setattr(loop, "jit_train_step", breaking)
  with pytest.raises(UserError, match=r"not finite at step 5 \(batch 5 of the data order\)"):
    train(config, tmp_path / "run")
  assert saved_steps(tmp_path / "run") == [3]
  assert [line["step"] for line in read_lines(tmp_path / "run")] == [2, 3, 4]


def test_another_config_in_the_same_run_is_refused(config, whole_run):
  other = dataclasses.replace(config, seed=1, accumulation=1)
  with pytest.raises(UserError, match=r"another train\.seed;"):
    train(other, whole_run)


def test_a_run_starts_from_the_parameters_of_another(config, whole_run, tmp_path, monkeypatch):
  states = []
  monkeypatch.setattr(loop, "_run", lambda config, state, *rest: states.append(state))
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
        (lambda c: dataclasses.replace(c, accumulation=3), "data.batch_size=8 must be a multiple"),
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


@pytest.mark.parametrize("name", ["steps", "accumulation", "log_every", "checkpoint_every"])
def test_a_number_of_steps_below_one_is_refused(config, name):
  with pytest.raises(UserError, match=f"{name}=0"):
    dataclasses.replace(config, **{name: 0})
