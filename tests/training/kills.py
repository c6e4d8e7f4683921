"""Kills a small run at random moments, saving included, and compares its end with an unbroken run.

  python tests/training/kills.py --kills=20 --seed=0

Each start is a process that ends by SIGKILL; the last is left alone. Compared bit for bit are
parameters, optimizer state, random key, position in the data, the lines of metrics and of
validations, and which checkpoint is the best.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import random
import sys
import tempfile
import time

from small_runs import assert_same_end, count_lines, make_config, start, write_config

from chexmix_jax.data import studies
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.tokenizers import text
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.checkpoint import ranked_steps, saved_steps
from chexmix_jax.training.validation import ValidationConfig

TESTS = pathlib.Path(__file__).parents[1]


def make_tokens(folder):
  """The tokens that the tests train on."""
  spec = importlib.util.spec_from_file_location("fixtures", TESTS / "conftest.py")
  fixtures = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(fixtures)
  output, images = folder / "studies", fixtures.FakeImageTokenizer()
  write_studies(fixtures.make_source(), output, LoadOptions(fixtures.SIZE), WriteOptions())
  reports = studies.load_studies(output, "train").reports
  tokenizer = text.train_sentencepiece(reports, 300, folder / "sp.model")
  vocabulary = Vocabulary.sentencepiece(tokenizer.vocab_size, images.num_codes)
  write_tokens(output, images, tokenizer, vocabulary, folder / "tokens")
  return folder / "tokens"


def saving(run_dir):
  """The step whose checkpoint is being written, or None."""
  folders = (run_dir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
  return next((int(path.name.split(".")[0]) for path in folders), None)


def kill_somewhere(child, run_dir, rng, said):
  """Kills `child` at a random moment; says where that was, or None if it had ended."""
  # One in eight somewhere in its start; the others some lines on, and half of them amid a save.
  starting, wants_save = rng.random() < 0.125, rng.random() < 0.5
  lines = count_lines(run_dir) + rng.randrange(1, 24)
  deadline = time.monotonic() + (rng.uniform(0.5, 10) if starting else 600)
  while time.monotonic() < deadline and child.poll() is None:
    if not starting and count_lines(run_dir) >= lines and (not wants_save or saving(run_dir)):
      break
    time.sleep(0.001)
  time.sleep(rng.uniform(0, 0.05))
  child.kill()
  if child.wait() == 0:
    return None
  if child.returncode != -9:
    sys.exit(f"a start ended by itself:\n{said.read_text()}")
  # What is there in its start may be left from before.
  step = saving(run_dir)
  where = "no save under way" if step is None else f"saving step {step}"
  steps = saved_steps(run_dir)
  newest = f"newest checkpoint {steps[-1]}" if steps else "no checkpoint"
  return f"{count_lines(run_dir)} lines, {'starting' if starting else where}, {newest}"


def main():
  """Prints a line a kill, and whether the end is identical."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  rng = random.Random(args.seed)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    config = make_config(make_tokens(folder))
    # Enough steps for all kills, and a line a step.
    steps = 50 * args.kills
    config = dataclasses.replace(
        config, steps=steps, log_every=1, checkpoint_every=15,
        validation=ValidationConfig(studies=8),
    )  # fmt: skip
    write_config(config, folder / "config.py")
    said = folder / "said"
    if start(folder / "config.py", folder / "whole", said).wait():
      sys.exit(said.read_text())
    print(f"unbroken: {count_lines(folder / 'whole')} lines", flush=True)
    kills = 0
    while kills < args.kills:
      child = start(folder / "config.py", folder / "killed", said)
      where = kill_somewhere(child, folder / "killed", rng, said)
      if where is None:
        sys.exit(f"the run ended after {kills} kills; give it more steps")
      kills += 1
      print(f"kill {kills}: {where}", flush=True)
    if start(folder / "config.py", folder / "killed", said).wait():
      sys.exit(said.read_text())
    assert_same_end(folder / "killed", folder / "whole")
    if ranked_steps(folder / "killed") != ranked_steps(folder / "whole"):
      sys.exit("other checkpoints are kept, or another is the best")
    print(
        "identical: parameters, optimizer state, key, position in the data, lines of metrics and of"
        " validations, the best checkpoint"
    )


if __name__ == "__main__":
  main()
