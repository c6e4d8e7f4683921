"""python -m chexmix_jax.quickstart: the whole main job, from radiographs to evaluated models.

Data set, image tokenizer, text tokenizer, token records, stage 1, stage 2, evaluations, report.
Every step writes into its own folder under --output and is skipped where that is finished, so the
same command goes on where it stopped.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time

from chexmix_jax import cli, prepare, tokenize, train_image_tokenizer, train_text_tokenizer
from chexmix_jax import config as config_lib
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.sources import open_source
from chexmix_jax.data.sources.source import Source
from chexmix_jax.data.workers import available_cpus
from chexmix_jax.data.write_studies import WriteOptions
from chexmix_jax.evaluation.run import Inputs
from chexmix_jax.files import write_whole
from chexmix_jax.parallel.devices import warn_if_accelerator_unused
from chexmix_jax.quickstart_report import write_quickstart_report
from chexmix_jax.train_image_tokenizer import ImageTokenizerConfig
from chexmix_jax.training.loop import train
from chexmix_jax.training.setup import TrainConfig


@dataclasses.dataclass(frozen=True)
class QuickstartConfig:
  """Sizes of the main job; `data.tokens` and the seeds inside the parts are filled in here."""

  size: int
  image_tokenizer: ImageTokenizerConfig
  text_vocab_size: int
  stage1: TrainConfig
  stage2: TrainConfig


def main(argv: list[str] | None = None) -> None:
  """Runs every step that is not finished yet."""
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.quickstart", description=__doc__)
  parser.add_argument(
      "--data",
      default="phantom:4500",
      help="phantom:NUMBER, r2gen:ANNOTATION.json, nih14:DIR, openi:DIR, … (docs/data.md)",
  )
  parser.add_argument("--image_root", type=pathlib.Path, help="as of prepare")
  parser.add_argument("--max_refused", type=float, default=0.01, help="as of prepare")
  parser.add_argument("--leaks", choices=["fail", "drop"], default="fail", help="as of prepare")
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/quickstart"))
  parser.add_argument("--seed", type=int, default=0)
  args, rest = parser.parse_known_args(argv)
  scale = "phantom" if args.data.startswith("phantom") else "real"
  default = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
  values, rest = cli.load_config(rest, default=f"{default}:{scale}", schema=QuickstartConfig)
  parser.parse_args(rest)  # Whatever is left is a mistake, and argparse says which.
  warn_if_accelerator_unused()
  config = config_lib.build(QuickstartConfig, values.to_dict())
  source = open_source(args.data, args.seed, args.image_root)
  options = WriteOptions(args.max_refused, args.leaks == "drop", workers=available_cpus())
  run(config, source, options, args.data, args.output, args.seed)


class Steps:
  """Names each step, and keeps the seconds that each took over all starts."""

  def __init__(self, output: pathlib.Path):
    self._path = output / "seconds.json"
    self.seconds: dict[str, float] = {}
    if self._path.exists():
      self.seconds = json.loads(self._path.read_text())

  def __call__(self, name: str, function, *args):
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    try:
      return function(*args)
    finally:
      elapsed = time.perf_counter() - start
      self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 1)
      self._path.parent.mkdir(parents=True, exist_ok=True)
      write_whole(self._path, json.dumps(self.seconds))
      print(f"   {elapsed:.0f} s", flush=True)


def run(
    config: QuickstartConfig,
    source: Source,
    options: WriteOptions,
    data: str,
    output: pathlib.Path,
    seed: int,
) -> None:
  """All steps in order; `data` is the name of the source.

  `output` gets report.html, summary.json and a folder for each step.
  """
  steps = Steps(output)
  tokens = make_inputs(config, source, options, output, seed, steps).tokens
  steps("stage 1", train, seeded_stage(config.stage1, tokens, seed), output / "stage1", "stage 1")
  stage2 = seeded_stage(config.stage2, tokens, seed)
  stage2 = dataclasses.replace(stage2, init=str(output / "stage1"))
  steps("stage 2", train, stage2, output / "stage2", "stage 2")
  steps("evaluations", _evaluate, output, seed)
  write_quickstart_report(output, data, seed, config, steps.seconds)


def make_inputs(
    config: QuickstartConfig,
    source: Source,
    options: WriteOptions,
    output: pathlib.Path,
    seed: int,
    steps: Steps,
    tokenizers: pathlib.Path | None = None,
) -> Inputs:
  """Studies, both tokenizers and tokens, in `output`; the seed is that of the image tokenizer.

  `tokenizers` is the `output` of an earlier call whose tokenizers to use instead.
  """
  studies, tokens = output / "studies", output / "tokens"
  home = output if tokenizers is None else tokenizers
  image_tokenizer, text_tokenizer = home / "image_tokenizer", home / "text_tokenizer.model"
  load = LoadOptions(config.size, reports_from_labels=True)
  steps("radiographs and reports", prepare.run, source, studies, load, options)
  if tokenizers is None:
    training = dataclasses.replace(config.image_tokenizer.train, seed=seed)
    seeded = dataclasses.replace(config.image_tokenizer, train=training)
    steps("image tokenizer", train_image_tokenizer.run, studies, image_tokenizer, seeded)
    if not text_tokenizer.exists():
      steps(
          "text tokenizer",
          train_text_tokenizer.run,
          studies,
          config.text_vocab_size,
          text_tokenizer,
          True,
      )
  steps("tokens", tokenize.run, studies, image_tokenizer, text_tokenizer, tokens)
  return Inputs(studies, tokens, image_tokenizer, text_tokenizer)


def seeded_stage(stage: TrainConfig, tokens: pathlib.Path, seed: int) -> TrainConfig:
  """A stage with its tokens; the seed is that of the model and of the order of the data."""
  data = dataclasses.replace(stage.data, tokens=str(tokens), shuffle_seed=seed)
  return dataclasses.replace(stage, data=data, seed=seed)


def _evaluate(output: pathlib.Path, seed: int) -> None:
  """Evaluates the checkpoints of both stages in a process of its own."""
  command = [sys.executable, "-m", "chexmix_jax.evaluate", f"--seed={seed}"]
  for stage in ("stage1", "stage2"):
    command += [f"--checkpoint={output / stage}", f"--output={output / 'evaluation' / stage}"]
  command += [f"--{name}={output / name}" for name in ("studies", "tokens", "image_tokenizer")]
  command += [f"--text_tokenizer={output / 'text_tokenizer.model'}"]
  subprocess.run(command, check=True)


if __name__ == "__main__":
  cli.entry(main)
