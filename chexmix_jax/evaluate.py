"""Scores checkpoints by the four evaluations: python -m chexmix_jax.evaluate --help

The protocols are those of --config (default: configs/evaluate.py). Every evaluation writes
OUTPUT/NAME.json (figures, their baselines among them, with 95 % intervals over patients and a
signature), and OUTPUT/scores.csv and scores.jsonl have all figures. An evaluation that is finished
for the same checkpoint is not repeated.

Other commands, each with a --help of its own:

  compare   one HTML page of several results side by side, with paired differences
  score     scores the reports of any system, in the format of ReXrank
  label     reads the 14 findings from a table of reports
"""

import argparse
import difflib
import json
import pathlib
import sys
import time
from collections.abc import Sequence

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.compare import write_comparison
from chexmix_jax.evaluation.run import EVALUATIONS, EvaluateConfig, Evaluator, Inputs
from chexmix_jax.evaluation.score import score_file
from chexmix_jax.files import check_place, write_whole
from chexmix_jax.labeler.table import label_file
from chexmix_jax.parallel.devices import warn_if_accelerator_unused
from chexmix_jax.training.checkpoint import last_step, saved_steps

_POLL_S = 10.0


def follow(
    evaluator: Evaluator, checkpoint: pathlib.Path, output: pathlib.Path, poll: float = _POLL_S
) -> None:
  """Evaluates every checkpoint that a run writes into `output`/STEP, until it ends.

  Waits for a run that has not begun. A checkpoint that the run deletes meanwhile is passed over.
  """
  seen: set[int] = set()
  while not (checkpoint / "job.json").exists() or last_step(checkpoint) not in seen:
    new = [step for step in saved_steps(checkpoint) if step not in seen]
    for step in new:
      try:
        evaluator(checkpoint, output / str(step), step)
      except UserError:
        if step in saved_steps(checkpoint):
          raise
        print(f"The checkpoint of step {step} is gone before it was read; it is passed over.")
      seen.add(step)
    if not new:
      time.sleep(poll)


def _names(text: str) -> list[str]:
  """Comma-separated names of evaluations, in the order of EVALUATIONS."""
  asked = [name.strip() for name in text.split(",") if name.strip()]
  for name in asked:
    if name not in EVALUATIONS:
      near = difflib.get_close_matches(name, EVALUATIONS, n=1)
      hint = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(EVALUATIONS)}."
      raise UserError(f"--evaluations holds {name!r}, which is none; {hint}")
  return [name for name in EVALUATIONS if name in asked]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.evaluate",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      "--checkpoint", type=pathlib.Path, action="append", required=True,
      help="run directory; may be given several times, each with an --output of its own",
  )  # fmt: skip
  parser.add_argument("--step", type=int, help=cli.STEP_HELP)
  parser.add_argument(
      "--follow", action="store_true",
      help="evaluate each new checkpoint of a run that trains, into OUTPUT/STEP",
  )  # fmt: skip
  for name, text in (
      ("studies", "--output of prepare"),
      ("tokens", "--output of tokenize"),
      ("image_tokenizer", "its folder"),
      ("text_tokenizer", "its model file, or a folder with vocab.json and merges.txt"),
  ):
    parser.add_argument(f"--{name}", type=pathlib.Path, required=True, help=text)
  parser.add_argument(
      "--output", type=pathlib.Path, action="append", required=True, help="folder of the results"
  )
  parser.add_argument(
      "--seed", type=int, default=0, help="of masks, pools, random baselines, bootstrap samples"
  )
  parser.add_argument("--evaluations", default=",".join(EVALUATIONS), help="default: %(default)s")
  return parser


def evaluate(argv: Sequence[str]) -> None:
  """The command line without a command's name."""
  default = pathlib.Path(__file__).parents[1] / "configs" / "evaluate.py"
  values, rest = cli.load_config(list(argv), default=str(default), schema=EvaluateConfig)
  args = _parser().parse_args(rest)
  if len(args.checkpoint) != len(args.output):
    raise UserError(
        f"There are {len(args.checkpoint)} --checkpoint and {len(args.output)} --output; give one"
        " --output for each --checkpoint."
    )
  if args.seed < 0:
    raise UserError(f"--seed={args.seed} must not be negative.")
  if args.follow and (len(args.checkpoint) > 1 or args.step is not None):
    raise UserError("--follow takes one --checkpoint and no --step.")
  config = config_lib.build(EvaluateConfig, values.to_dict())
  inputs = Inputs(args.studies, args.tokens, args.image_tokenizer, args.text_tokenizer)
  warn_if_accelerator_unused()
  evaluator = Evaluator(inputs, config, _names(args.evaluations), args.seed)
  if args.follow:
    follow(evaluator, args.checkpoint[0], args.output[0])
    return
  for checkpoint, output in zip(args.checkpoint, args.output, strict=True):
    evaluator(checkpoint, output, args.step)


def compare(argv: Sequence[str]) -> None:
  """The command `compare`."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.evaluate compare", description=write_comparison.__doc__
  )
  parser.add_argument(
      "results", type=pathlib.Path, nargs="+",
      help="folders that evaluate wrote, the one that others are compared with first",
  )  # fmt: skip
  parser.add_argument("--names", help="comma-separated, of the results; default: their folders'")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="the HTML file")
  args = parser.parse_args(argv)
  names = args.names.split(",") if args.names else [str(path) for path in args.results]
  write_comparison(args.results, names, args.output)


def label(argv: Sequence[str]) -> None:
  """The command `label`."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.evaluate label",
      description="Reads the 14 CheXpert findings from a CSV of reports, by rules.",
  )
  parser.add_argument("--input", type=pathlib.Path, required=True, help="CSV of reports")
  parser.add_argument("--column", required=True, help="of texts, such as findings,impression")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="CSV of the labels")
  args = parser.parse_args(argv)
  label_file(args.input, args.column.split(","), args.output)


def score(argv: Sequence[str]) -> None:
  """The command `score`."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.evaluate score",
      description="Scores the reports of any system: case id -> section_findings,"
      " section_impression, model_prediction.",
  )
  parser.add_argument("--input", type=pathlib.Path, required=True, help="ReXrank JSON")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="JSON of the scores")
  parser.add_argument("--reference", default="findings", help="or impression, or both by a comma")
  parser.add_argument("--seed", type=int, default=0, help="of the bootstrap samples")
  args = parser.parse_args(argv)
  check_place(args.output)
  found = score_file(args.input, args.reference.split(","), seed=args.seed)
  write_whole(args.output, json.dumps(found, indent=2, allow_nan=False))
  for name, (low, high) in found["intervals"].items():
    print(f"  {name:44}  {found['values'][name]:7.4f}  {low:.4f} – {high:.4f}")
  for name, reason in found["unavailable"].items():
    print(f"  {name:44}  {reason}")
  if found["left_out"]:
    print(f"  {len(found['left_out'])} cases have no reference; {args.output} names them.")
  if found["empty"]:
    print(f"  {len(found['empty'])} predictions are empty and scored so; {args.output} names them.")
  print(f"{found['signature']}\n{args.output} is written.")


COMMANDS = {"compare": compare, "label": label, "score": score}
"""Name -> command line of what is not the evaluation of a checkpoint."""


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  argv = sys.argv[1:] if argv is None else argv
  if argv and argv[0] in COMMANDS:
    COMMANDS[argv[0]](argv[1:])
  else:
    evaluate(argv)


if __name__ == "__main__":
  cli.entry(main)
