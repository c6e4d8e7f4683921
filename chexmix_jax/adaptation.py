"""python -m chexmix_jax.adaptation: does an adapter learn what full fine-tuning learns?

The findings of generated radiographs are cut in two. Tokenizers are trained on all of them; for
each seed a model is pretrained on studies with the first half only, and every arm goes on from it
over fewer studies with the second half, for the same number of steps: all parameters, or an
adapter. Validation and test are of other patients with the second half. Of its learning rates an
arm takes the one with the highest F1 of the findings in validation with the first seed.
OUTPUT/adaptation.csv, .md and .png compare the arms. Whatever is finished is not repeated: the same
command goes on where it stopped.
"""

import argparse
import dataclasses
import pathlib
import sys

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.adaptation_report import BASE, ArmResult, write_adaptation
from chexmix_jax.data.sources import open_source
from chexmix_jax.data.workers import available_cpus
from chexmix_jax.data.write_studies import WriteOptions
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.run import EvaluateConfig, Evaluator, Inputs
from chexmix_jax.evaluation.sections import Found, read_found
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.phantom.findings import KINDS
from chexmix_jax.quickstart import QuickstartConfig, Steps, make_inputs, seeded_stage
from chexmix_jax.training.base import read_model
from chexmix_jax.training.logging import read_metrics
from chexmix_jax.training.loop import TrainConfig, train
from chexmix_jax.training.trainable import count_trained

_CHOSEN_BY = "finding_f1_macro"


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to adapt.

  Attributes:
    learning_rates: that are tried.
    adapter: what is trained; None trains everything.
  """

  learning_rates: tuple[float, ...]
  adapter: AdapterConfig | None = None


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
  """Sizes, findings, arms and protocols.

  Attributes:
    quickstart: sizes; stage 1 pretrains, stage 2 adapts.
    num_studies: of each of three sets: all findings; the first half; the second half, to evaluate.
    num_adapted: of the set with the second half that is adapted to, of which eight in ten train.
    first: findings that the model is pretrained on, kinds of the phantoms.
    second: findings that it is adapted to.
    arms: name -> settings of an Arm.
    reference: the arm whose gain is 100 %.
    seeds: of the models and of the order of the data; the first chooses the learning rates.
    evaluate: the protocol of the reports.
  """

  quickstart: QuickstartConfig
  num_studies: int
  num_adapted: int
  first: tuple[str, ...]
  second: tuple[str, ...]
  arms: dict
  reference: str
  seeds: tuple[int, ...] = (0, 1, 2)
  evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)

  def __post_init__(self):
    config_lib.check_at_least_one(self, ("num_studies", "num_adapted"), "the adaptation")
    if self.reference not in self.arms:
      raise UserError(f"reference={self.reference!r} is none of arms: {', '.join(self.arms)}.")
    if both := sorted({*self.first} & {*self.second}):
      raise UserError(f"{both[0]!r} is in first and in second; a finding belongs to one of them.")
    for name in self.arms:
      if not self.arm(name).learning_rates:
        raise UserError(f"arms[{name!r}] has no learning_rates; give one or more.")

  def arm(self, name: str) -> Arm:
    return config_lib.build(Arm, self.arms[name], f"arms[{name!r}]")


def run(config: AdaptationConfig, output: pathlib.Path) -> None:
  """All steps that are not finished."""
  first, second, adapted_to = _make_inputs(config, output / "inputs")
  evaluators = {
      split: Evaluator(second, dataclasses.replace(config.evaluate, split=split), ("generation",))
      for split in ("val", "test")
  }
  findings = tuple(dict.fromkeys(KINDS[kind] for kind in config.second))

  def result(place: pathlib.Path, rate: float) -> ArmResult:
    found = _score(place, evaluators["test"], "test")
    return ArmResult(found, findings, count_trained(read_model(place)), rate, read_metrics(place))

  results: dict[str, list[ArmResult]] = {name: [] for name in (BASE, *config.arms)}
  chosen: dict[str, float] = {}
  for seed in config.seeds:
    stage1, stage2 = (
        seeded_stage(stage, inputs.tokens, seed)
        for stage, inputs in (
            (config.quickstart.stage1, first), (config.quickstart.stage2, adapted_to)
        )
    )  # fmt: skip
    base = output / f"seed{seed}" / "base"
    train(stage1, base, f"seed {seed}, pretraining")
    results[BASE].append(result(base, 0.0))
    for name in config.arms:
      arm = config.arm(name)
      rates = (chosen[name],) if name in chosen else arm.learning_rates
      runs = {rate: base.with_name(f"{name.replace(' ', '_')}_{rate:g}") for rate in rates}
      for rate, place in runs.items():
        train(adapted(stage2, arm, rate, base), place, f"seed {seed}, {name}, {rate:g}")
      if name not in chosen:
        tried = {rate: _score(place, evaluators["val"], "val") for rate, place in runs.items()}
        chosen[name] = max(rates, key=lambda rate: tried[rate].values["generation"][_CHOSEN_BY])
      results[name].append(result(runs[chosen[name]], chosen[name]))
  write_adaptation(results, config.reference, output)


def _make_inputs(config: AdaptationConfig, output: pathlib.Path) -> tuple[Inputs, Inputs, Inputs]:
  """Of the first half, of the second and of what is adapted to, with tokenizers of all findings."""
  sets = {
      "all": (config.num_studies, (*config.first, *config.second)),
      "second": (config.num_studies, config.second),
      "first": (config.num_studies, config.first),
      "adapted": (config.num_adapted, config.second),
  }
  made: dict[str, Inputs] = {}
  for seed, (name, (num_studies, kinds)) in enumerate(sets.items()):
    # Other seeds are other patients.
    source = open_source(f"phantom:{num_studies}:{','.join(kinds)}", seed)
    options, folder = WriteOptions(workers=available_cpus()), output / name
    tokenizers = output / "all" if made else None
    steps = Steps(folder)
    made[name] = make_inputs(
        config.quickstart, source, options, folder, 0, steps, tokenizers
    )
  return made["first"], made["second"], made["adapted"]


def _score(place: pathlib.Path, evaluator: Evaluator, split: str) -> Found:
  evaluator(place, place / split)
  return read_found(place / split, "run the adaptation again.")


def adapted(stage2: TrainConfig, arm: Arm, rate: float, base: pathlib.Path) -> TrainConfig:
  """The training of an arm."""
  return dataclasses.replace(
      stage2,
      model=dataclasses.replace(stage2.model, adapter=arm.adapter),
      optimizer=dataclasses.replace(stage2.optimizer, learning_rate=rate),
      init=str(base),
  )


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.adaptation",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/adaptation"))
  default = pathlib.Path(__file__).parents[1] / "configs" / "adaptation.py"
  values, rest = cli.load_config(argv, default=str(default), schema=AdaptationConfig)
  args = parser.parse_args(rest)
  run(config_lib.build(AdaptationConfig, values.to_dict()), args.output)


if __name__ == "__main__":
  cli.entry(main)
