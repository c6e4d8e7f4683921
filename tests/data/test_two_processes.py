"""Processes of jax.distributed on this machine: their batches put together are those of one."""

import contextlib
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from chexmix_jax import prepare
from chexmix_jax.data import studies
from chexmix_jax.data.pipeline import DataConfig, train_iterator
from chexmix_jax.errors import UserError

_PROGRAM = """
import contextlib, sys
import absl.flags, jax, numpy as np
from chexmix_jax.data.pipeline import DataConfig, train_iterator
absl.flags.FLAGS.mark_as_parsed()
address, index, tokens, output = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
config = DataConfig(tokens, context=96, batch_size=4, packing_rows=8)
with contextlib.closing(
    train_iterator(config, jax.process_index(), jax.process_count())
) as iterator:
  batches = [next(iterator) for _ in range(10)]
np.savez(output, **{name: np.stack([batch[name] for batch in batches]) for name in batches[0]})
"""


def test_two_processes_read_the_batches_of_one(tokens_dir, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  outputs = [tmp_path / f"{index}.npz" for index in range(2)]
  processes = [
      subprocess.Popen([sys.executable, "-c", _PROGRAM, address, str(i), tokens_dir, output])
      for i, output in enumerate(outputs)
  ]
  assert [process.wait(timeout=120) for process in processes] == [0, 0]
  config = DataConfig(str(tokens_dir), context=96, batch_size=4, packing_rows=8)
  with contextlib.closing(train_iterator(config)) as iterator:
    batches = [next(iterator) for _ in range(10)]
  with np.load(outputs[0]) as first, np.load(outputs[1]) as second:
    for name in batches[0]:
      joined = np.concatenate([first[name], second[name]], axis=1)
      np.testing.assert_array_equal(joined, np.stack([batch[name] for batch in batches]))


def test_prepare_takes_its_share_from_processes_that_slurm_started(tmp_path):
  output = tmp_path / "studies"
  command = [
      sys.executable, "-m", "chexmix_jax.prepare", "--source=phantom", "--num_studies=40",
      "--size=16", "--shard_size=10", "--workers=1", f"--output={output}", "--distributed",
  ]  # fmt: skip
  # What `srun -n 2` sets.
  shared = {
      "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
      "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "2",
  }  # fmt: skip
  processes = [
      subprocess.Popen(
          command,
          env=os.environ | shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
          stdout=subprocess.PIPE,
          text=True,
      )
      for i in range(2)
  ]
  said = [process.communicate(timeout=120)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert studies.read_card(output)["splits"] == {"train": 32, "val": 4, "test": 4}
  assert any("studies: 40 read, 40 used, 0 refused" in text for text in said)


def test_without_such_processes_it_says_what_to_name(tmp_path):
  arguments = ["--source=phantom", f"--output={tmp_path / 'out'}", "--distributed"]
  with pytest.raises(UserError, match="name --process_index and --process_count instead"):
    prepare.main(arguments)
  assert not (tmp_path / "out").exists()
