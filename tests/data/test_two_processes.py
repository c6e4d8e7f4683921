"""Processes of jax.distributed on this machine: their batches put together are those of one."""

import contextlib
import socket
import subprocess
import sys

import numpy as np

from chexmix_jax.data.pipeline import DataConfig, train_iterator

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
