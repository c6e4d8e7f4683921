"""python -m chexmix_jax.ablation: which targets of stage 2 should carry loss, over several seeds.

Studies, tokenizers and tokens are made once; each seed trains stage 1, and every arm goes on from
it for the same number of steps over the same tokens with its own masking and weights. All are
evaluated, and OUTPUT/ablation.html, .csv, .md and .png compare them, a model that was never trained
among them. Whatever is finished is not repeated: the same command goes on where it stopped.
"""

import argparse
import dataclasses
import pathlib
import sys

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.ablation_report import write_ablation
from chexmix_jax.data.masking import MaskingConfig
from chexmix_jax.data.sources import open_source
from chexmix_jax.data.workers import available_cpus
from chexmix_jax.data.write_studies import WriteOptions
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.figures import UNTRAINED
from chexmix_jax.evaluation.run import EvaluateConfig, Evaluator
from chexmix_jax.evaluation.sections import Found, read_found
from chexmix_jax.quickstart import QuickstartConfig, Steps, make_inputs, seeded_stage
from chexmix_jax.training.loop import train


@dataclasses.dataclass(frozen=True)
class AblationConfig:
  """Sizes, arms and protocols.

  Attributes:
    quickstart: sizes and both stages.
    arms: name -> what it changes in the masking of stage 2, by modality.
    reference: the arm that the others are compared with.
    seeds: of the models and of the order of the data.
    evaluate: the protocols.
  """

  quickstart: QuickstartConfig
  arms: dict
  reference: str
  seeds: tuple[int, ...] = (0, 1, 2)
  evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)

  def __post_init__(self):
    if self.reference not in self.arms:
      raise UserError(f"reference={self.reference!r} is none of arms: {', '.join(self.arms)}.")

  def masking(self, arm: str) -> MaskingConfig:
    """That of an arm."""
    given = config_lib.to_dict(self.quickstart.stage2.data.masking)
    for modality, changes in self.arms[arm].items():
      if modality not in given:
        raise UserError(f"arms[{arm!r}] names {modality!r}; use image or text.")
      given[modality] |= changes
    return config_lib.build(MaskingConfig, given, f"arms[{arm!r}]")


def run(config: AblationConfig, data: str, output: pathlib.Path) -> None:
  """All steps that are not finished; `data` is as of the quickstart."""
  options = WriteOptions(workers=available_cpus())
  source = open_source(data, 0, None)
  inputs = make_inputs(config.quickstart, source, options, output, 0, Steps(output))
  maskings = {arm: config.masking(arm) for arm in config.arms}
  for seed in config.seeds:
    evaluator = Evaluator(inputs, config.evaluate, seed=seed)
    stage1, stage2 = (
        seeded_stage(stage, inputs.tokens, seed)
        for stage in (config.quickstart.stage1, config.quickstart.stage2)
    )
    folder = output / f"seed{seed}"
    train(stage1, folder / "stage1", f"seed {seed}, stage 1")
    for arm, masking in maskings.items():
      changed = dataclasses.replace(stage2.data, masking=masking)
      settings = dataclasses.replace(stage2, data=changed, init=str(folder / "stage1"))
      place = folder / _folder(arm)
      train(settings, place, f"seed {seed}, {arm}")
      evaluator(place, place / "evaluation")
    # A step of no length leaves the parameters as they were drawn.
    still = dataclasses.replace(stage1.optimizer, learning_rate=0.0, warmup_steps=0)
    place = folder / _folder(UNTRAINED)
    train(dataclasses.replace(stage1, optimizer=still, steps=1), place, UNTRAINED)
    evaluator(place, place / "evaluation")
  write_ablation(_read(config, output), config.reference, config.evaluate, output)


def _folder(arm: str) -> str:
  return arm.replace(",", "").replace(" ", "_")


def _read(config: AblationConfig, output: pathlib.Path) -> dict[str, list[Found]]:
  """What the evaluations left, by arm and seed."""
  return {
      arm: [
          read_found(
              output / f"seed{seed}" / _folder(arm) / "evaluation", "run the ablation again."
          )
          for seed in config.seeds
      ]
      for arm in (*config.arms, UNTRAINED)
  }


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.ablation",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--data", default="phantom:4500", help="as of the quickstart")
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/ablation"))
  args, rest = parser.parse_known_args(argv)
  scale = "phantom" if args.data.startswith("phantom") else "real"
  default = pathlib.Path(__file__).parents[1] / "configs" / "ablation.py"
  values, rest = cli.load_config(rest, default=f"{default}:{scale}", schema=AblationConfig)
  parser.parse_args(rest)  # Whatever is left is a mistake, and argparse says which.
  run(config_lib.build(AblationConfig, values.to_dict()), args.data, args.output)


if __name__ == "__main__":
  cli.entry(main)
