"""Raw data or generated studies to study records: python -m chexmix_jax.prepare --help"""

import argparse
import pathlib
from typing import Any

from chexmix_jax import cli
from chexmix_jax.data import sources
from chexmix_jax.data import workers as workers_lib
from chexmix_jax.data.account import describe_account
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.sources.source import Source
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.errors import UserError


def run(
    source: Source, output: pathlib.Path, load: LoadOptions, options: WriteOptions | None = None
) -> dict[str, Any] | None:
  """Writes the studies of a source to `output` and prints the account; the card.

  Finished output is left as it is. None where other processes are not done yet. Raises UserError
  for input that cannot be used.
  """
  options = options or WriteOptions(workers=workers_lib.available_cpus())
  card = write_studies(source, output, load, options)
  if card is None:
    print(f"{output}: this process is done; others still write their shards")
    return None
  print(describe_account(card["account"]))
  counts = ", ".join(f"{number} {split}" for split, number in card["splits"].items())
  print(f"{output}: {counts} studies at {load.size} pixels")
  return card


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="chexmix_jax.prepare",
      description=__doc__,
      formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add("--source", required=True, choices=sources.NAMES)
  add("--data_dir", help="folder of the set; file of r2gen and table; not for phantom")
  add("--image_root", type=pathlib.Path, help="every image must lie in it; None: the set's folder")
  add("--columns", help="table only: image=COLUMN,report=COLUMN,… (docs/data.md)")
  add("--num_studies", type=int, default=2000, help="phantom only")
  add("--seed", type=int, default=0, help="phantom only")
  add("--output", type=pathlib.Path, required=True)
  add("--size", type=int, default=512, help="side of the pictures in pixels")
  add("--sections", default="findings,impression", help="of a report, in their order in its text")
  add("--min_report", type=int, default=1, help="characters; a shorter report counts as none")
  add("--max_report", type=int, default=20_000, help="characters; a longer report is refused")
  add("--reports_from_labels", action="store_true", help="write a report where there is none")
  add("--max_refused", type=float, default=0.01, help="share of the rows, studies or pictures")
  add("--leaks", choices=["fail", "drop"], default="fail", help="studies that stand in two splits")
  add("--shard_size", type=int, default=2000, help="studies a file at most")
  add("--workers", type=int, default=workers_lib.available_cpus(), help="processes that read")
  cli.add_process_arguments(parser)
  args = parser.parse_args(argv)
  if args.source == "phantom" and args.data_dir:
    raise UserError("--data_dir does not go with --source=phantom; leave it out.")
  location = args.num_studies if args.source == "phantom" else args.data_dir or ""
  load = LoadOptions(
      args.size, tuple(args.sections.split(",")), args.min_report, args.max_report,
      args.reports_from_labels,
  )  # fmt: skip
  index, count = cli.process_of(args)
  options = WriteOptions(
      args.max_refused, args.leaks == "drop", args.shard_size, args.workers, index, count
  )
  columns = None if args.columns is None else cli.parse_columns(args.columns)
  source = sources.open_source(
      f"{args.source}:{location}", args.seed, args.image_root, columns
  )
  run(source, args.output, load, options)


if __name__ == "__main__":
  cli.entry(main)
