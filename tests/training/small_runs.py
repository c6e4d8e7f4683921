"""Small training runs and their comparison, for the tests and for kills.py."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from chexmix_jax import config as config_lib
from chexmix_jax.data.masking import MaskingConfig, ModalityMaskConfig
from chexmix_jax.data.pipeline import DataConfig
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.training import loop, setup
from chexmix_jax.training.checkpoint import saved_steps
from chexmix_jax.training.optimizer import OptimizerConfig
from chexmix_jax.training.setup import TrainConfig
from chexmix_jax.training.validation import Validator

STEPS = 9
_MASKED = ModalityMaskConfig(prob=0.8, low=0.1, high=0.9)
_TIMING = ("step_seconds", "tokens_per_second", "tokens_per_second_per_device")


def make_config(tokens_dir):
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


def train_compiling_once(config, run_dir):
  """Trains, and checks that the step was compiled for one kind of arguments."""
  jit_train_step, step_fns = setup.jit_train_step, []

  def keeping(*args):
    step_fns.append(jit_train_step(*args))
    return step_fns[0]

  setup.jit_train_step = keeping
  try:
    loop.train(config, run_dir)
  finally:
    setup.jit_train_step = jit_train_step
  assert step_fns[0]._cache_size() == 1


def write_config(config, file):
  """A config file for the command line."""
  file.write_text(
      "import ml_collections\n\n\ndef get_config():\n"
      f"  return ml_collections.ConfigDict({config_lib.to_dict(config)!r})\n"
  )


def start(file, run_dir, said, *arguments, devices=None):
  """A process that trains the config of `file`; what it says goes to the file `said`."""
  command = [
      sys.executable, "-m", "chexmix_jax.train", f"--config={file}", f"--output={run_dir}",
      *arguments,
  ]  # fmt: skip
  flags = os.environ.get("XLA_FLAGS", "")
  if devices:  # The last flag of a name counts.
    flags += f" --xla_force_host_platform_device_count={devices}"
  with said.open("a") as output:
    return subprocess.Popen(
        command,
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=output,
        stderr=output,
    )


def read_lines(run_dir):
  """The lines of metrics."""
  return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def count_lines(run_dir):
  """How many whole lines of metrics there are, now that another process may write one."""
  path = run_dir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def read_validations(run_dir):
  """The lines of validations; none of a run without any."""
  path = run_dir / "validation.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def validate(config):
  """The line of a run's fresh state, its set-up and its parameters."""
  with setup.set_up(config) as made:
    validator = Validator(
        config.validation, config.data, config.accumulation, made.config.model, made.vocabulary,
        made.abstract, made.mesh,
    )  # fmt: skip
    state = made.first_state(None)
    return validator(state), made, jax.device_get(state.params)


def read_item(run_dir, step, item):
  """One item of a checkpoint, as numpy arrays."""
  folder = run_dir.absolute() / "checkpoints" / str(step) / item
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(folder).item_metadata.tree
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(folder, ocp.args.PyTreeRestore(restore_args=arguments))


def without_timing(lines):
  """The numbers of lines of metrics that do not depend on the clock."""
  return [{k: v for k, v in line.items() if k not in _TIMING} for line in lines]


def assert_same_end(run_dir, expected):
  """Parameters, optimizer state, key, data position, losses and validations agree bit for bit."""
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
  assert without_timing(read_lines(run_dir)) == without_timing(read_lines(expected))
  assert read_validations(run_dir) == read_validations(expected)


def assert_same_losses(run_dir, expected):
  """All losses agree to 1e-5, as they do on other devices."""
  ours, theirs = read_lines(run_dir), read_lines(expected)
  assert [line["step"] for line in ours] == [line["step"] for line in theirs]
  np.testing.assert_allclose(
      [line["loss"] for line in ours], [line["loss"] for line in theirs], atol=1e-5, rtol=0
  )
