"""What the ablation found: ablation.html, .csv, .md and .png.

Seeds of an arm share nothing but the data; arms of a seed share its stage 1, so an arm is compared
with another seed by seed. Intervals of these differences are those of Student's t over the seeds.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from chexmix_jax.evaluation import figures, page
from chexmix_jax.evaluation.run import EvaluateConfig
from chexmix_jax.evaluation.sections import Found
from chexmix_jax.evaluation.summary import Row, summary_rows
from chexmix_jax.files import write_table, write_whole

Results = Mapping[str, Sequence[Found]]
"""Arm -> what was found, by seed."""


@dataclasses.dataclass(frozen=True)
class Cell:
  """A figure of one arm over the seeds.

  Attributes:
    mean: NaN where a seed has no such figure, and so are the others.
    lowest: of the seeds.
    highest: of the seeds.
    difference: mean, low and high end of the 95 % interval of this arm minus the reference; NaN of
      the reference itself, ends NaN of a single seed.
  """

  mean: float
  lowest: float
  highest: float
  difference: tuple[float, float, float]

  @property
  def differs(self) -> bool:
    """Whether the interval of the difference does not hold zero."""
    _, low, high = self.difference
    return low > 0 or high < 0


def compare(values_S: Sequence[float], reference_S: Sequence[float], is_reference: bool) -> Cell:
  """Of S seeds."""
  values = np.array(values_S)
  found = (float(values.mean()), float(values.min()), float(values.max()))
  if is_reference:
    return Cell(*found, (np.nan,) * 3)
  return Cell(*found, mean_interval(values - np.array(reference_S)))


def mean_interval(values_S: np.ndarray) -> tuple[float, float, float]:
  """Mean, low and high end of its 95 % interval (Student's t); ends NaN of a single value."""
  middle, half = float(values_S.mean()), np.nan
  if len(values_S) > 1:
    error = values_S.std(ddof=1) / np.sqrt(len(values_S))
    half = float(scipy.stats.t.ppf(0.975, len(values_S) - 1) * error)
  return middle, middle - half, middle + half


def write_ablation(
    results: Results, reference: str, config: EvaluateConfig, output: pathlib.Path
) -> None:
  """Writes the four files to `output`, and prints the tables of ablation.md."""

  def cell(arm: str, evaluation: str, figure: str) -> Cell:
    ours, theirs = (
        [one.values[evaluation].get(figure, float("nan")) for one in results[name]]
        for name in (arm, reference)
    )
    return compare(ours, theirs, arm == reference)

  by_heading = summary_rows(results[reference][0].values)
  rows = [row for rows in by_heading.values() for row in rows]
  cells = {
      (arm, row.evaluation, row.figure): cell(arm, row.evaluation, row.figure)
      for row in rows
      for arm in results
  }
  write_table(output / "ablation.csv", [_line(key, found, results) for key, found in cells.items()])
  panels = _panels(config)
  bands = {}
  for title, (evaluation, figures_by_ratio) in panels.items():
    bands[title] = list(figures_by_ratio), {
        arm: np.array([
            dataclasses.astuple(cell(arm, evaluation, figure))[:3]
            for figure in figures_by_ratio.values()
        ])
        for arm in results
    }
  curves = figures.by_ratio(bands)
  curves.savefig(output / "ablation.png", dpi=110)
  seeds = len(results[reference])
  note = (
      f"Means over {seeds} seed{'s' * (seeds > 1)}, lowest and highest in brackets. Every arm goes"
      " on from its seed's stage 1 for the same steps over the same tokens."
  )
  against = (
      f"Differences to {reference}, seed by seed, and their 95 % intervals (Student's t,"
      f" {seeds} seeds); those whose interval does not hold zero are marked by a star."
  )
  numeric = range(1, 1 + len(results))
  parts = [
      page.paragraph("Research only, not for clinical use.", "notice"),
      page.paragraph(note, "soft"),
      page.figure(curves, "figures by share hidden", True),
      page.table(("", *results), list(_lines(by_heading, results, cells, _range_text)), numeric),
      page.paragraph(against, "soft"),
      page.table(
          ("", *results), list(_lines(by_heading, results, cells, _difference_text)), numeric
      ),
  ]
  write_whole(output / "ablation.html", page.document("CheXmix in JAX: what carries loss", parts))
  text = "\n\n".join(
      _markdown(title, evaluation, by_ratio, results, cell)
      for title, (evaluation, by_ratio) in panels.items()
  )
  text += f"\n\n{note} A star: the 95 % interval of the difference to {reference}, seed by seed,"
  text += " does not hold zero.\n"
  write_whole(output / "ablation.md", text)
  print(f"{text}\n{output / 'ablation.html'}, .csv, .md and .png are written.")


def _line(key: tuple[str, str, str], found: Cell, results: Results) -> dict[str, Any]:
  arm, evaluation, figure = key
  difference, low, high = found.difference
  return {
      "evaluation": evaluation, "figure": figure, "arm": arm, "mean": found.mean,
      "lowest": found.lowest, "highest": found.highest, "difference": difference,
      "difference_low": low, "difference_high": high, "seeds": len(results[arm]),
  }  # fmt: skip


def _lines(
    by_heading: Mapping[str, Sequence[Row]],
    results: Results,
    cells: Mapping[tuple[str, str, str], Cell],
    text: Any,
) -> Iterator[tuple[str, ...]]:
  """Rows of a table with a column an arm, headings among them."""
  for heading, rows in by_heading.items():
    if rows:
      yield (heading,)
    for row in rows:
      yield row.caption, *(
          text(cells[arm, row.evaluation, row.figure], row.digits) for arm in results
      )


def _range_text(found: Cell, digits: int) -> str:
  return f"{found.mean:.{digits}f} ({found.lowest:.{digits}f} – {found.highest:.{digits}f})"


def _difference_text(found: Cell, digits: int) -> str:
  middle, low, high = (f"{number:+.{max(digits, 1)}f}" for number in found.difference)
  if np.isnan(found.difference[0]):
    return "–"
  return f"{middle} [{low}, {high}]{'*' if found.differs else ''}"


def _panels(config: EvaluateConfig) -> dict[str, tuple[str, dict[float, str]]]:
  """Title -> evaluation, and its figure by the share that is hidden."""
  reports = config.generation.mask_ratios
  return {
      "AUROC": ("classification", {
          ratio: f"auroc/mask={ratio:.2f}" for ratio in config.classification.mask_ratios
      }),
      "PSNR of the hidden part, dB": ("inpainting", {
          ratio: f"masked_psnr/random/mask={ratio:.2f}"
          for ratio in config.inpainting.random_ratios
      }),
      "F1 of the findings in reports": ("generation", {
          ratio: f"finding_f1_micro{f'/mask={ratio:.2f}' if i else ''}"
          for i, ratio in enumerate(reports)
      }),
  }  # fmt: skip


def _markdown(
    title: str, evaluation: str, by_ratio: Mapping[float, str], results: Results, cell: Any
) -> str:
  """A table with a row an arm and a column a ratio."""
  head = (title, *(f"{ratio:.0%} hidden" for ratio in by_ratio))
  lines = [head, ("---",) * len(head)]
  digits = 1 if evaluation == "inpainting" else 3
  for arm in results:
    found = [cell(arm, evaluation, figure) for figure in by_ratio.values()]
    lines.append((arm, *(_range_text(c, digits) + "*" * c.differs for c in found)))
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
