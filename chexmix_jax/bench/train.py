"""Times the training step on random tokens, alone or beside the same model in PyTorch.

The model is a small one, or that of a config of chexmix_jax.train: --config=PATH, with overrides,
gives its batch, mesh and optimizer too. Token records are not needed.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib.util
import pathlib
import platform
import statistics
from typing import Any, NamedTuple

import numpy as np

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.bench.process import Process
from chexmix_jax.bench.small import SMALL
from chexmix_jax.bench.steppers import (
    Batch,
    Facts,
    JaxStepper,
    TorchStepper,
    platform_and_devices,
)
from chexmix_jax.data import packing
from chexmix_jax.data.documents import TEXT_PARTS, parse_forms
from chexmix_jax.data.pipeline import DataConfig
from chexmix_jax.data.tokens import INDEXED
from chexmix_jax.errors import UserError
from chexmix_jax.models import flops
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.parallel.hardware import chip_of
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.setup import TrainConfig

BATCH, LENGTH = 16, 320
# Of a picture of the published model's.
CODES = 1024
STUDIES = 2000
_WARM_UP, _TRACED = 2, 3


def _load(argv: list[str]) -> tuple[TrainConfig, list[str]]:
  """The config of `--config`, or the small model's; and the rest of argv."""
  if not any(argument.lstrip("-").startswith("config") for argument in argv):
    return TrainConfig(SMALL, DataConfig("", LENGTH, BATCH)), argv
  values, rest = cli.load_config(argv, schema=TrainConfig)
  config = config_lib.build(TrainConfig, values.to_dict())
  if config.model.vocab_size == 0:
    model = dataclasses.replace(config.model, vocab_size=Vocabulary.published().size)
    config = dataclasses.replace(config, model=model)
  return config, rest


def make_batch(config: TrainConfig) -> Batch:
  """A batch as training has it, of random tokens that all carry loss.

  Studies have pictures of 1,024 codes and texts of 23 - 175 tokens. Their documents are those of
  the config, packed into rows as it says; what is longer than the context is cut to it.
  """
  data = config.data
  rng = np.random.default_rng(data.shuffle_seed)
  index = {name: np.ones(STUDIES, np.int32) for name in INDEXED}
  for text in TEXT_PARTS:
    index[text] = rng.integers(23, 176, STUDIES, np.int32)
  forms = parse_forms(data.documents)
  lengths = np.minimum(packing.document_lengths(index, forms, CODES), data.context)
  epoch = functools.partial(
      packing.make_epoch, [packing.StudySet(lengths, 1.0)], forms, data.shuffle_seed
  )
  packer = packing.RowPacker(epoch, data.context, data.packing_rows)
  shape = (data.batch_size, data.context)
  tokens = rng.integers(0, config.model.vocab_size, (shape[0], shape[1] + 1), np.int32)
  positions, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  for row in range(data.batch_size):
    start = 0
    for segment, entry in enumerate(packer.next_row(), start=1):
      stop = start + lengths[entry.number, entry.form]
      positions[row, start:stop] = np.arange(stop - start)
      segment_ids[row, start:stop] = segment
      start = stop
  return {
      "inputs": tokens[:, :-1],
      "targets": tokens[:, 1:],
      "positions": positions,
      "segment_ids": segment_ids,
      "weights": (segment_ids > 0).astype(np.float32),
  }


def _check(args: argparse.Namespace, config: TrainConfig) -> None:
  if args.steps < 1:
    raise UserError("--steps must be 1 or more.")
  for name in ("torch", "transformers") if args.against else ():
    if importlib.util.find_spec(name) is None:
      raise UserError(
          f"--against=torch needs {name}; pip install torch==2.13.0 transformers==5.23."
      )
  if args.against and config.optimizer.name != "adamw":
    raise UserError("--against=torch times AdamW; set --config.optimizer.name=adamw.")


@dataclasses.dataclass(frozen=True)
class _Side:
  """One of those that are timed, and what it is made from."""

  name: str
  kind: type[JaxStepper] | type[TorchStepper]
  arguments: tuple[Any, ...]


class _Timing(NamedTuple):
  """Seconds of the steps of a side, and its facts."""

  seconds: list[float]
  facts: Facts


def _common_platform(config: TrainConfig) -> str:
  """What jax runs on, found out in a process that ends: this one keeps no device's memory."""
  with Process(platform_and_devices, config.mesh) as process:
    kind, number = process.call(tuple)
  if kind not in ("cpu", "gpu"):
    raise UserError(f"--against=torch runs on a CPU or a GPU, and this is a {kind}; leave it out.")
  if kind == "gpu" and number > 1:
    raise UserError(
        f"--against=torch compares one GPU with one, and the mesh has {number}; set"
        " CUDA_VISIBLE_DEVICES=0."
    )
  return kind


def _time(
    sides: list[_Side], steps: int, trace: pathlib.Path | None = None
) -> dict[str, _Timing]:
  """Times them in turn, step by step; then, with `trace`, writes one of the first."""
  with contextlib.ExitStack() as stack:
    processes = [
        (side, stack.enter_context(Process(side.kind, *side.arguments))) for side in sides
    ]
    for side, process in processes:
      process.call(side.kind.steps, _WARM_UP)
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(steps):
      for side, process in processes:
        seconds[side.name] += process.call(side.kind.steps, 1)
    timings = {
        side.name: _Timing(seconds[side.name], process.call(side.kind.facts))
        for side, process in processes
    }
    if trace is not None:
      processes[0][1].call(JaxStepper.trace, str(trace), _TRACED)
  return timings


def main(argv: list[str]) -> None:
  """Prints seconds a step, tokens a second, share of the peak and memory.

  Seconds are the median over the steps, which on a CPU both sides do in turn. The memory of an
  accelerator does not hold both, so there one process ends before the other starts.
  """
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.bench train", description=__doc__, allow_abbrev=False
  )
  parser.add_argument("--steps", type=int, default=10, help="timed steps of each")
  parser.add_argument("--against", choices=["torch"], help="also time the model in PyTorch")
  parser.add_argument("--trace", type=pathlib.Path, help="folder for a trace of a few of our steps")
  config, rest = _load(argv)
  args = parser.parse_args(rest)
  _check(args, config)
  batch = make_batch(config)
  ours = _Side("chexmix_jax", JaxStepper, (config, batch))
  if not args.against:
    timings = _time([ours], args.steps, args.trace)
  else:
    kind = _common_platform(config)
    theirs = _Side(args.against, TorchStepper, (config, batch, kind))
    if kind == "cpu":
      timings = _time([ours, theirs], args.steps, args.trace)
    else:
      timings = _time([ours], args.steps, args.trace) | _time([theirs], args.steps)
  _report(config, batch, timings)
  if args.trace:
    print(
        f"trace of {_TRACED} steps in {args.trace}: pip install xprof, xprof --logdir={args.trace};"
        " or open its perfetto_trace.json.gz at https://ui.perfetto.dev"
    )


def _report(config: TrainConfig, batch: Batch, timings: dict[str, _Timing]) -> None:
  model, data = config.model, config.data
  ours = timings["chexmix_jax"].facts
  tokens = int((batch["segment_ids"] > 0).sum())
  context = flops.packed_context(batch["positions"], batch["segment_ids"])
  versions = "; ".join(timing.facts.versions for timing in timings.values())
  print(
      f"{model.num_layers} layers, width {model.width}, {model.num_heads} heads, batch"
      f" {data.batch_size}, sequence {data.context}, vocabulary {model.vocab_size}, {model.dtype},"
      f" {ours.platform}"
  )
  print(
      f"scan_layers={model.scan_layers}, remat={model.remat}, dropout={model.dropout},"
      f" accumulation={config.accumulation}, {config.optimizer.name}; documents of {context:,.0f}"
      f" tokens, rows {tokens / batch['segment_ids'].size:.1%} filled"
  )
  print(
      f"{ours.num_devices} x {ours.device_kind}; {versions}, Python {platform.python_version()},"
      f" {datetime.date.today()}"
  )
  for name, (seconds, facts) in timings.items():
    median = statistics.median(seconds)
    rate = tokens / median / facts.num_devices
    chip = chip_of(facts.device_kind)
    share = f", MFU {flops.utilization(model, context, rate, chip):.1%}" if chip else ""
    print(
        f"{name:12} {median:8.3f} s a step {tokens / median:10,.0f} tokens/s{share}; peak memory"
        f" {facts.peak_memory / 1e9:.2f} GB; {facts.start}"
    )
  _print_formula(model, context, ours)
  if len(timings) > 1:
    (_, first), (other, second) = timings.items()
    ratios = [b / a for a, b in zip(first.seconds, second.seconds, strict=True)]
    print(f"speed of chexmix_jax / {other}: {statistics.median(ratios):.2f}")


def _print_formula(model: TransformerConfig, context: float, facts: Facts) -> None:
  print(
      f"a token takes {flops.train_flops_per_token(model, context) / 1e9:,.3f} GFLOP = 6 x"
      f" {flops.multiplying_parameters(model):,} parameters, all but the embedding, + 6 x"
      f" {model.num_layers} layers x width {model.width} x {context:,.0f} tokens of a document,"
      " attention being causal; nothing that is computed again, no padding"
  )
  if chip := chip_of(facts.device_kind):
    print(
        "MFU = a token's FLOP x tokens/s of a device / its peak of"
        f" {chip.flops / 1e12:,.1f} TFLOP/s in dense bfloat16"
    )
  else:
    print(f"no MFU: chexmix_jax.parallel.hardware does not have the peak of {facts.device_kind!r}")
