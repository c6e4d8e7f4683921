"""python -m chexmix_jax.find_learning_rate --config=… --output=DIR: a range test of the rate.

Trains for some steps whose learning rate rises from --low to --high (Smith 2017, arXiv 1506.01186),
with the data, the model, `init` and the optimizer of the config of a run; its warm-up and decay are
left out, and no checkpoint is written. DIR gets learning_rates.csv and learning_rates.png.
"""

import argparse
import pathlib
import sys

import jax

from chexmix_jax import cli
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import figures
from chexmix_jax.files import write_table
from chexmix_jax.parallel import distributed
from chexmix_jax.train import add_arguments, read_config
from chexmix_jax.training.learning_rate import RangeTest, find_learning_rate


def main(argv: list[str] | None = None) -> None:
  """Prints the rate to train with."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.find_learning_rate",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add_arguments(parser)
  parser.add_argument("--low", type=float, default=1e-6, help="first learning rate")
  parser.add_argument("--high", type=float, default=1.0, help="last learning rate")
  parser.add_argument("--steps", type=int, default=100, help="from the first to the last")
  args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
  cli.join_processes(args)
  with distributed.together():
    config = read_config(parser, args, rest)
    try:
      args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f"{args.output} cannot be made ({error}); give another --output.") from error
    found = find_learning_rate(config, args.low, args.high, args.steps)
    if jax.process_index() == 0:
      _write(found, args.output)
      print(_describe(found, args.output))


def _write(found: RangeTest, output: pathlib.Path) -> None:
  columns = zip(found.rates, found.losses, found.smoothed, strict=True)
  rows = [
      {"step": step, "learning_rate": float(rate), "loss": float(loss), "smoothed": float(smoothed)}
      for step, (rate, loss, smoothed) in enumerate(columns, start=1)
  ]
  write_table(output / "learning_rates.csv", rows)
  marks = {
      "least loss": found.rates[found.least],
      "steepest descent": found.rates[found.steepest],
      "suggested": found.suggested,
  }
  picture = figures.range_test(found.rates, found.losses, found.smoothed, marks)
  picture.savefig(output / "learning_rates.png", dpi=110)


def _describe(found: RangeTest, output: pathlib.Path) -> str:
  least, steepest = (float(found.rates[place]) for place in (found.least, found.steepest))
  end = "the loss was lost" if found.has_diverged else "that was the last step"
  lines = [
      f"{len(found.rates)} steps to a learning rate of {found.rates[-1]:.2g}: {end}",
      f"least smoothed loss  {found.smoothed[found.least]:.4f} at {least:.2g}",
      f"steepest descent     at {steepest:.2g}",
      f"suggested            {found.suggested:.2g}, a tenth of the rate with the least loss: its"
      " place depends less on single batches than that of the steepest descent",
  ]
  if not found.has_fallen:
    lines.append(
        "WARNING: no rate lowered the loss by more than it scatters; take more --steps or a larger"
        " data.batch_size."
    )
  elif not found.has_diverged and found.least > 0.9 * len(found.rates):
    lines.append("WARNING: the loss was still falling at the end; give a higher --high.")
  return "\n".join([
      *lines,
      f"--config.optimizer.learning_rate={found.suggested:.2g}",
      f"{output / 'learning_rates.png'} and .csv are written.",
  ])


if __name__ == "__main__":
  cli.entry(main)
