"""python -m chexmix_jax.bench NAME [options]: timings beside what one would use instead."""

import sys

from chexmix_jax import cli
from chexmix_jax.bench import data, generate, train
from chexmix_jax.errors import UserError

BENCHMARKS = {"train": train.main, "generate": generate.main, "data": data.main}


def main(argv: list[str] | None = None) -> None:
  """Runs one benchmark by name."""
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] not in BENCHMARKS:
    raise UserError(f"Name a benchmark: python -m chexmix_jax.bench {' | '.join(BENCHMARKS)}.")
  BENCHMARKS[argv[0]](argv[1:])


if __name__ == "__main__":
  cli.entry(main)
