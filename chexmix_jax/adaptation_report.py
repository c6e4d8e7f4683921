"""What the adaptation found: adaptation.csv, .md and .png.

Arms of a seed share its pretrained model: gains over it are taken seed by seed, and so is the share
of the reference's gain that an arm reaches. Two intervals stand beside the mean share: Student's t
over the seeds, and the percentiles over samples of the test patients, who are the same for all.

Shape suffixes: S seeds, R samples of the patients.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chexmix_jax.ablation_report import mean_interval
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import figures
from chexmix_jax.evaluation.sections import Found
from chexmix_jax.files import write_table, write_whole
from chexmix_jax.metrics.bootstrap import interval

BASE = "pretrained, not adapted"

F1, NLL = "mean F1 of the findings", "NLL of the reports"
"""The figures whose gains are compared."""

_F1 = "finding_f1/"


@dataclasses.dataclass(frozen=True)
class ArmResult:
  """One arm of one seed.

  Attributes:
    found: on the test split.
    findings: of the second half, names of the CheXpert scheme.
    trained: number of parameters that were trained, and of those of the model.
    learning_rate: that was chosen.
    metrics: lines of metrics.jsonl.
  """

  found: Found
  findings: tuple[str, ...]
  trained: tuple[int, int]
  learning_rate: float
  metrics: Sequence[Mapping[str, float]]

  def __post_init__(self):
    for name in self.findings:
      if _F1 + name not in self.found.values["generation"]:
        raise UserError(
            f"No report that was scored has {name}; raise num_studies, or leave it out."
        )

  def value(self, figure: str) -> float:
    """F1, NLL, or the F1 of the finding of this name."""
    values = self.found.values["generation"]
    return float(np.mean([values.get(name, np.nan) for name in self._names(figure)]))

  def samples(self, figure: str) -> np.ndarray:
    """The same in each sample of the patients, float (R,)."""
    samples = self.found.samples["generation"][1]
    return np.mean([samples[name] for name in self._names(figure)], axis=0)

  def _names(self, figure: str) -> list[str]:
    """The figures of the generation whose mean it is."""
    if figure == NLL:
      return ["report_nll"]
    return [_F1 + name for name in (self.findings if figure == F1 else [figure])]


Results = Mapping[str, Sequence[ArmResult]]
"""Arm -> its results by seed; BASE among them."""


@dataclasses.dataclass(frozen=True)
class Share:
  """An arm's gain over the base, as a share of the reference's; means over the seeds.

  Attributes:
    gain: in units of the figure.
    share: 1 where the arm gains what the reference gains.
    over_seeds: low and high of the 95 % interval of Student's t; NaN of a single seed.
    over_patients: low and high of the 95 % interval over samples of the test patients.
  """

  gain: float
  share: float
  over_seeds: tuple[float, float]
  over_patients: tuple[float, float]


def share_of_gain(
    arm: Sequence[ArmResult],
    base: Sequence[ArmResult],
    reference: Sequence[ArmResult],
    figure: str,
) -> Share:
  """Of S seeds, in the same order."""

  def gains(results: Sequence[ArmResult], read: Any) -> np.ndarray:
    """(S,) or (S, R)."""
    return np.array([read(ours, figure) for ours in results]) - np.array(
        [read(theirs, figure) for theirs in base]
    )

  gains_S = gains(arm, ArmResult.value)
  shares_S = gains_S / gains(reference, ArmResult.value)
  middle, low, high = mean_interval(shares_S)
  shares_SR = gains(arm, ArmResult.samples) / gains(reference, ArmResult.samples)
  return Share(float(gains_S.mean()), middle, (low, high), interval(shares_SR.mean(0)))


def write_adaptation(results: Results, reference: str, output: pathlib.Path) -> None:
  """Writes the three files to `output`, and prints the tables of adaptation.md."""
  shares = {
      (name, figure): share_of_gain(arm, results[BASE], results[reference], figure)
      for name, arm in results.items()
      for figure in (F1, NLL)
  }
  write_table(output / "adaptation.csv", _lines(results, shares))
  seeds = len(results[reference])
  text = "\n\n".join((
      _table(_main_rows(results, shares, reference)),
      _table(_finding_rows(results)),
      f"Test split of the second half, means over {seeds} seed{'s' * (seeds > 1)}, lowest and"
      f" highest in brackets. Shares are of the gain of {reference} over the pretrained model, seed"
      " by seed; in square brackets their 95 % intervals, Student's t over the seeds | bootstrap"
      " over the test patients. NLL is in nats a token of the reports.",
  ))  # fmt: skip
  write_whole(output / "adaptation.md", f"{text}\n")
  _draw(results).savefig(output / "adaptation.png", dpi=110)
  print(f"{text}\n\n{output / 'adaptation.md'}, .csv and .png are written.")


def _lines(results: Results, shares: Mapping[tuple[str, str], Share]) -> list[dict[str, Any]]:
  """Of the CSV: one an arm and figure."""
  lines = []
  for name, arm in results.items():
    trained, total = arm[0].trained
    for figure in (F1, NLL, *arm[0].findings):
      values_S = [one.value(figure) for one in arm]
      line = {
          "arm": name, "figure": figure, "mean": np.mean(values_S), "lowest": min(values_S),
          "highest": max(values_S), "seeds": len(arm), "learning_rate": arm[0].learning_rate,
          "trained": trained, "parameters": total,
      }  # fmt: skip
      found = shares.get((name, figure))
      names = ("gain", "share", "seeds_low", "seeds_high", "patients_low", "patients_high")
      numbers = (
          (found.gain, found.share, *found.over_seeds, *found.over_patients)
          if found
          else (float("nan"),) * len(names)
      )
      lines.append(line | dict(zip(names, numbers, strict=True)))
  return lines


def _main_rows(
    results: Results, shares: Mapping[tuple[str, str], Share], reference: str
) -> list[tuple[str, ...]]:
  head = ["", "parameters trained", "learning rate"]
  for figure in (F1, NLL):
    head += [figure, "share of the gain"]
  rows = [tuple(head)]
  for name, arm in results.items():
    trained, total = arm[0].trained
    row = [
        name,
        "–" if name == BASE else f"{trained:,} ({trained / total:.2%})",
        "–" if name == BASE else f"{arm[0].learning_rate:g}",
    ]
    for figure in (F1, NLL):
      values_S = [one.value(figure) for one in arm]
      row.append(f"{np.mean(values_S):.3f} ({min(values_S):.3f} – {max(values_S):.3f})")
      row.append(_share_text(shares[name, figure], name, reference))
    rows.append(tuple(row))
  return rows


def _share_text(found: Share, name: str, reference: str) -> str:
  if name == BASE:
    return "–"
  text = f"{found.share:.1%}"
  if name == reference:
    return text
  ends = (
      "–" if np.isnan(low) else f"{low:.0%}, {high:.0%}"
      for low, high in (found.over_seeds, found.over_patients)
  )
  return f"{text} [{' | '.join(ends)}]"


def _finding_rows(results: Results) -> list[tuple[str, ...]]:
  rows = [("F1 of a finding", *results)]
  for name in results[BASE][0].findings:
    means = [np.mean([one.value(name) for one in arm]) for arm in results.values()]
    rows.append((name, *(f"{mean:.3f}" for mean in means)))
  return rows


def _table(rows: Sequence[tuple[str, ...]]) -> str:
  """In Markdown, of a head and rows."""
  lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _draw(results: Results) -> Any:
  adapted = {name: arm for name, arm in results.items() if name != BASE}
  curves = {
      name: (
          np.array([line["step"] for line in arm[0].metrics if "text_nll" in line]),
          np.array([
              [line["text_nll"] for line in one.metrics if "text_nll" in line] for one in arm
          ]),
      )
      for name, arm in adapted.items()
  }
  findings = results[BASE][0].findings
  points = {
      name: np.array([[one.value(figure) for one in arm] for figure in (F1, *findings)])
      for name, arm in results.items()
  }
  return figures.adaptation(curves, ["mean", *findings], points)
