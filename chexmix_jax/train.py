"""python -m chexmix_jax.train --config=configs/stage1_2p8b.py --output=RUN: trains one stage."""

import argparse
import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import Params, abstract_params
from chexmix_jax.parallel import distributed
from chexmix_jax.parallel.devices import warn_if_accelerator_unused
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.parallel.sharding import param_shardings
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.loop import train
from chexmix_jax.training.setup import TrainConfig, make_job
from chexmix_jax.training.validation import Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what a command that trains has: where to, and with which other processes."""
  parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the results")
  parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0 of --process_count")
  cli.add_process_arguments(parser)


def read_config(
    parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]
) -> TrainConfig:
  """That of --config with its overrides in `rest`, the same in all processes."""
  values, rest = cli.load_config(rest, schema=TrainConfig)
  if rest:
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  config = config_lib.build(TrainConfig, values.to_dict())
  mesh, output = config_lib.to_dict(config.mesh), str(args.output)
  distributed.check_same({"output": output, "mesh": mesh, **make_job(config)})
  warn_if_accelerator_unused()
  return config


def make_score(config: TrainConfig) -> Score | None:
  """What computes the evaluation that `config.validation` chooses checkpoints by, if any.

  Raises UserError for a name that is none, for paths that are missing or do not belong together,
  and for several processes, which no evaluation can share.
  """
  validation = config.validation
  if validation is None or not validation.is_evaluation:
    return None
  from chexmix_jax.evaluation.run import EVALUATIONS, EvaluateConfig, Evaluator, Inputs
  from chexmix_jax.inference.model import LoadedModel
  from chexmix_jax.models.unstack import unstack_layers

  name = validation.metric.split("/")[0]
  if name not in EVALUATIONS:
    raise UserError(
        f"validation.metric={validation.metric!r} names no evaluation; use one of"
        f" {', '.join(EVALUATIONS)}."
    )
  if jax.process_count() > 1:
    raise UserError(
        f"validation.metric={validation.metric!r} is a figure of an evaluation, which several"
        " processes cannot share; use loss."
    )
  given = config_lib.to_dict(validation.evaluation)
  protocol = given.pop("protocol")
  for key, path in given.items():
    if not path:
      raise UserError(f"validation.evaluation.{key} is empty, but {name} needs it; name its path.")
  default = pathlib.Path(__file__).parents[1] / "configs" / "evaluate.py"
  values, _ = cli.load_config([], protocol or f"{default}:validation", EvaluateConfig)
  settings = dataclasses.replace(config_lib.build(EvaluateConfig, values.to_dict()), split="val")
  classifier, labels = config.model.classifier, config.data.labels
  if classifier is not None and not protocol:  # It is asked for what it is trained to say.
    asked = dataclasses.replace(
        settings.classification, method="classifier", findings=classifier.findings,
        policy=labels.policy, label_file=labels.file,
    )  # fmt: skip
    settings = dataclasses.replace(settings, classification=asked)
  inputs = Inputs(**{key: pathlib.Path(path) for key, path in given.items()})
  evaluator = Evaluator(inputs, settings, [name])
  job = make_job(config)
  vocabulary = Vocabulary(**job["tokens"]["vocabulary"])
  model = dataclasses.replace(config.model, vocab_size=vocabulary.size, adapter=None)
  shardings = param_shardings(make_mesh(), abstract_params(model))

  def score(params: Params, step: int) -> dict[str, float]:
    # A copy (device_put makes none), as taking the layers apart deletes what they were stacked in.
    copied = jax.tree.map(
        lambda leaf, sharding: jnp.copy(jax.device_put(leaf, sharding)), params, shardings
    )
    return evaluator.score(LoadedModel(model, vocabulary, unstack_layers(copied), job, step))

  return score


def main(argv: list[str] | None = None) -> None:
  """Trains to the config's last step; the same command goes on from the newest checkpoint."""
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.train", description=__doc__)
  add_arguments(parser)
  args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
  cli.join_processes(args)
  with distributed.together():
    config = read_config(parser, args, rest)
    train(config, args.output, score=make_score(config))


if __name__ == "__main__":
  cli.entry(main)
