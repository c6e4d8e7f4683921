"""python -m chexmix_jax.ablation: which targets of stage 2 should carry loss, over several seeds.

Studies, tokenizers and tokens are made once; each seed trains stage 1, and every arm goes on from
it for the same number of steps over the same tokens with its own masking and weights. All are
evaluated, and OUTPUT/ablation.html and ablation.csv compare them, a model that was never trained
among them. Whatever is finished is not repeated: the same command goes on where it stopped.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.data.masking import MaskingConfig
from chexmix_jax.data.sources import open_source
from chexmix_jax.data.workers import available_cpus
from chexmix_jax.data.write_studies import WriteOptions
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import figures, page
from chexmix_jax.evaluation.run import EvaluateConfig, Evaluator
from chexmix_jax.evaluation.sections import Found, read_found
from chexmix_jax.evaluation.summary import summary_rows
from chexmix_jax.files import write_table, write_whole
from chexmix_jax.quickstart import QuickstartConfig, Steps, make_inputs, seeded_stage
from chexmix_jax.training.loop import train

UNTRAINED = figures.UNTRAINED


@dataclasses.dataclass(frozen=True)
class AblationConfig:
  """Sizes, arms and protocols.

  Attributes:
    quickstart: sizes and both stages.
    arms: name -> what it changes in the masking of stage 2, by modality.
    seeds: of the models and of the order of the data.
    evaluate: the protocols.
  """

  quickstart: QuickstartConfig
  arms: dict
  seeds: tuple[int, ...] = (0, 1, 2)
  evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)

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
  write_report(config, output)


def _folder(arm: str) -> str:
  return arm.replace(",", "").replace(" ", "_")


def write_report(config: AblationConfig, output: pathlib.Path) -> None:
  """ablation.html and ablation.csv, of what the evaluations left in `output`."""
  arms = [*config.arms, UNTRAINED]
  mend = "run the ablation again."
  found = {
      arm: [
          read_found(output / f"seed{seed}" / _folder(arm) / "evaluation", mend)
          for seed in config.seeds
      ]
      for arm in arms
  }
  lines: list[tuple[str, ...]] = []
  table: list[dict[str, Any]] = []
  for heading, rows in summary_rows(found[arms[0]][0].values).items():
    if rows:
      lines.append((heading,))
    for row in rows:
      texts = []
      for arm, seeds in found.items():
        numbers = [one.values[row.evaluation].get(row.figure, float("nan")) for one in seeds]
        middle, low, high = _mean_and_range(numbers)
        texts.append(f"{middle:.{row.digits}f} ({low:.{row.digits}f} – {high:.{row.digits}f})")
        table.append({
            "evaluation": row.evaluation, "figure": row.figure, "arm": arm, "mean": middle,
            "lowest": low, "highest": high, "seeds": len(seeds),
        })  # fmt: skip
      lines.append((row.caption, *texts))
  parts = [
      page.paragraph("Research only, not for clinical use.", "notice"),
      page.paragraph(
          f"Means over {len(config.seeds)} seeds, lowest and highest in brackets. Every arm goes on"
          " from its seed's stage 1 for the same steps over the same tokens.",
          "soft",
      ),
      page.figure(_curves(config, found), "figures by share hidden", True),
      page.table(("", *arms), lines, range(1, 1 + len(arms))),
  ]
  write_table(output / "ablation.csv", table)
  write_whole(output / "ablation.html", page.document("CheXmix in JAX: what carries loss", parts))
  print(f"{output / 'ablation.html'} and ablation.csv are written.")


def _curves(config: AblationConfig, found: dict[str, list[Found]]) -> Figure:
  evaluate = config.evaluate
  reports = evaluate.generation.mask_ratios
  panels = {
      "AUROC": ("classification", {
          ratio: f"auroc/mask={ratio:.2f}" for ratio in evaluate.classification.mask_ratios
      }),
      "PSNR of the hidden part, dB": ("inpainting", {
          ratio: f"masked_psnr/random/mask={ratio:.2f}"
          for ratio in evaluate.inpainting.random_ratios
      }),
      "F1 of the findings in reports": ("generation", {
          ratio: f"finding_f1_micro{f'/mask={ratio:.2f}' if i else ''}"
          for i, ratio in enumerate(reports)
      }),
  }  # fmt: skip
  bands = {}
  for title, (evaluation, names) in panels.items():
    bands[title] = list(names), {
        arm: np.array([
            _mean_and_range([one.values[evaluation].get(name, float("nan")) for one in seeds])
            for name in names.values()
        ])
        for arm, seeds in found.items()
    }
  return figures.by_ratio(bands)


def _mean_and_range(numbers: list[float]) -> tuple[float, float, float]:
  return statistics.fmean(numbers), min(numbers), max(numbers)


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
