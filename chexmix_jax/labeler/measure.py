"""How often the labeler is right: python -m chexmix_jax.labeler.measure --help

Against a table of the NegBio labels' form (--reports, --labels), or against the truth of generated
studies (--phantoms). Prints Markdown; no text of a report is printed.
"""

import argparse
import csv
import io
import pathlib

import numpy as np

from chexmix_jax import cli, phantom
from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole
from chexmix_jax.labeler import coded as coded_lib
from chexmix_jax.labeler.aggregate import label_report
from chexmix_jax.labeler.coded import READINGS, SAME, Coded, Score
from chexmix_jax.labels import CHEXPERT_14, INDEX, POSITIVE, UNCERTAIN


def score_phantoms(number: int) -> dict[str, dict[str, Score]]:
  """Value (positive, uncertain) -> finding -> score on the labels of generated studies."""
  studies = [phantom.describe(0, index) for index in range(number)]
  true_NF = np.stack([labels for _, _, labels in studies])
  found_NF = np.stack([label_report(report) for _, report, _ in studies])
  return {
      said: {
          name: coded_lib.score(true_NF[:, INDEX[name]] == value, found_NF[:, INDEX[name]] == value)
          for name in CHEXPERT_14
      }
      for said, value in (("positive", POSITIVE), ("uncertain", UNCERTAIN))
  }


_HEADER = (
    "| finding | reports with it | precision | recall | F1 | F1, even uids | F1, odd uids |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def coded_table(coded: Coded, reading: str) -> str:
  """Markdown of `score_coded` under a reading, a line a finding and the mean."""
  halves = [coded_lib.score_coded(coded, reading, parity) for parity in (None, 0, 1)]
  lines = [_HEADER]
  for name in coded.true:
    of_all = halves[0][name]
    f1 = " | ".join(f"{half[name].f1:.3f}" for half in halves)
    star = "" if name in SAME else " *"
    lines.append(
        f"| {name}{star} | {of_all.true} | {of_all.precision:.3f} | {of_all.recall:.3f} | {f1} |"
    )
  means = " | ".join(f"{coded_lib.mean_f1(half):.3f}" for half in halves)
  lines.append(f"| mean of those without * | | | | {means} |")
  return "\n".join(lines)


def _reading_table(coded: Coded) -> str:
  lines = ["| reading | mean F1 | even uids | odd uids |", "| --- | ---: | ---: | ---: |"]
  for name in READINGS:
    means = [coded_lib.mean_f1(coded_lib.score_coded(coded, name, half)) for half in (None, 0, 1)]
    lines.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
  return "\n".join(lines)


def _place_table(coded: Coded) -> str:
  sides, zones = (coded_lib.score_places(coded, kind) for kind in ("side", "zone"))
  lines = ["| finding | right sides | right zones |", "| --- | ---: | ---: |"]
  for name in sides:
    lines.append(f"| {name} | {_ratio(*sides[name])} | {_ratio(*zones[name])} |")
  totals = [np.sum(list(of_kind.values()), axis=0) for of_kind in (sides, zones)]
  lines.append(f"| all | {_ratio(*totals[0])} | {_ratio(*totals[1])} |")
  return "\n".join(lines)


def _ratio(right: int, count: int) -> str:
  return f"{right} of {count} ({right / count:.3f})" if count else "none"


def _phantom_table(number: int) -> str:
  lines = ["| finding | positive | F1 | uncertain | F1 |", "| --- | ---: | ---: | ---: | ---: |"]
  scores = score_phantoms(number)
  for name in CHEXPERT_14:
    cells = (
        f"{of[name].true} | {of[name].f1:.3f}" if of[name].true + of[name].found else "0 | "
        for of in scores.values()
    )
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.labeler.measure",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--reports", type=pathlib.Path, help="CSV with uid and the columns of text")
  parser.add_argument("--labels", type=pathlib.Path, help="CSV with uid and a column a finding")
  parser.add_argument("--column", default="findings,impression", help="columns of text")
  parser.add_argument(
      "--reading", choices=READINGS, default="coded", help="doubts that count as positive"
  )
  parser.add_argument("--errors", type=pathlib.Path, help="CSV for the disagreements, with text")
  parser.add_argument("--phantoms", type=int, default=0, help="number of generated studies")
  args = parser.parse_args(argv)
  if args.phantoms > 0:
    print(_phantom_table(args.phantoms))
  if args.reports and args.labels:
    _measure_coded(args)
  elif args.phantoms <= 0 or args.reports or args.labels:
    raise UserError("Give both --reports and --labels, or --phantoms.")


def _measure_coded(args: argparse.Namespace) -> None:
  coded = coded_lib.read_coded(args.reports, args.labels, args.column.split(","))
  print(f"{len(coded.uids)} reports, reading {args.reading!r}\n")
  print(coded_table(coded, args.reading), _reading_table(coded), sep="\n\n")
  if any(coded.codes):
    print(f"\n{_place_table(coded)}")
  if args.errors:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("uid", "finding", "kind", "text"))
    writer.writerows(coded_lib.list_errors(coded, args.reading))
    write_whole(args.errors, text.getvalue())


if __name__ == "__main__":
  cli.entry(main)
