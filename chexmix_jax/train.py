"""python -m chexmix_jax.train --config=configs/stage1_2p8b.py --output=RUN: trains one stage."""

import argparse
import pathlib
import sys

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.parallel import distributed
from chexmix_jax.parallel.devices import warn_if_accelerator_unused
from chexmix_jax.training.loop import TrainConfig, make_job, train


def main(argv: list[str] | None = None) -> None:
  """Trains to the config's last step; the same command goes on from the newest checkpoint."""
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.train", description=__doc__)
  parser.add_argument("--output", type=pathlib.Path, required=True, help="run directory")
  parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0 of --process_count")
  cli.add_process_arguments(parser)
  args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
  cli.join_processes(args)
  with distributed.together():
    values, rest = cli.load_config(rest, schema=TrainConfig)
    if rest:
      parser.error(f"unrecognized arguments: {' '.join(rest)}")
    config = config_lib.build(TrainConfig, values.to_dict())
    mesh, output = config_lib.to_dict(config.mesh), str(args.output)
    distributed.check_same({"output": output, "mesh": mesh, **make_job(config)})
    warn_if_accelerator_unused()
    train(config, args.output)


if __name__ == "__main__":
  cli.entry(main)
