"""Prints the README's table: the mean over quickstart runs of several seeds, and the range.

Run as: .venv/bin/python docs/mean_of_seeds.py runs/seed0 runs/seed1 runs/seed2
"""

import json
import pathlib
import statistics
import sys

from chexmix_jax.evaluation.summary import Values, cells, summary_rows

STAGES = ("stage1", "stage2")


def main(runs: list[str]) -> None:
  """A markdown table over the summary.json of each run folder."""
  summaries = [json.loads((pathlib.Path(run) / "summary.json").read_text()) for run in runs]
  shared = set.intersection(*map(set, summaries))
  means = {k: statistics.mean(s[k] for s in summaries) for k in summaries[0] if k in shared}
  stages = [_values(means, stage) for stage in STAGES]
  print("| figure | stage 1 | stage 2 | lowest and highest of stage 2 | baselines |")
  print("| --- | --- | --- | --- | --- |")
  for heading, rows in summary_rows(stages[-1]).items():
    print(f"| **{heading}** | | | | |")
    for row in rows:
      numbers, _, baselines = cells(row, stages)
      key = f"{STAGES[-1]}/{row.evaluation}/{row.figure}"
      ends = [f(s[key] for s in summaries) for f in (min, max)]
      span = " – ".join(f"{end:.{row.digits}f}" for end in ends)
      print(f"| {row.caption} | {' | '.join(numbers)} | {span} | {baselines} |")
  minutes = means["seconds/total"] / 60
  print(f"\nMeans of {len(summaries)} runs; {minutes:.1f} minutes each, set-up left out.")


def _values(summary: dict[str, float], stage: str) -> Values:
  """The figures of one stage by evaluation."""
  values: dict[str, dict[str, float]] = {}
  for key, number in summary.items():
    found, evaluation, figure = (*key.split("/", 2), "", "")[:3]
    if found == stage:
      values.setdefault(evaluation, {})[figure] = number
  return values


if __name__ == "__main__":
  main(sys.argv[1:])
