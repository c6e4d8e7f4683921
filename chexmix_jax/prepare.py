"""Raw data or generated studies to study records: python -m chexmix_jax.prepare --help"""

import argparse
import pathlib
from typing import Any

from chexmix_jax import cli
from chexmix_jax.data import sources, studies
from chexmix_jax.data import workers as workers_lib
from chexmix_jax.errors import UserError


def run(
    source: str, output: pathlib.Path, size: int, seed: int = 0, workers: int | None = None
) -> dict[str, Any]:
  """Writes the studies of `source` (as sources.open_source reads it) to `output`; the card.

  `size` is the side of the pictures in pixels, `workers` the number of processes (None: one a
  core). Finished output is left as it is. Raises UserError for input that cannot be used.
  """
  if size < 1:
    raise UserError(f"size={size} must be a positive number of pixels.")
  if workers is not None and workers < 1:
    raise UserError(f"workers={workers} must be a positive number of processes.")
  return studies.write_studies(
      sources.open_source(source, seed), output, size, workers or workers_lib.available_cpus()
  )


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="chexmix_jax.prepare", description=__doc__)
  parser.add_argument("--source", required=True, choices=sources.NAMES)
  parser.add_argument("--data_dir", help="file or folder of the set; not for phantom")
  parser.add_argument("--num_studies", type=int, default=2000, help="phantom only")
  parser.add_argument("--seed", type=int, default=0, help="phantom only")
  parser.add_argument("--size", type=int, default=512, help="side of the pictures in pixels")
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--workers", type=int, help="processes; default: one a core")
  args = parser.parse_args(argv)
  if args.source == "phantom" and args.data_dir:
    raise UserError("--data_dir does not go with --source=phantom; leave it out.")
  location = args.num_studies if args.source == "phantom" else args.data_dir or ""
  card = run(f"{args.source}:{location}", args.output, args.size, args.seed, args.workers)
  counts = ", ".join(f"{number} {split}" for split, number in card["splits"].items())
  print(f"{args.output}: {counts} studies at {args.size} pixels")


if __name__ == "__main__":
  cli.entry(main)
