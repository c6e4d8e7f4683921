"""python -m chexmix_jax.train_image_tokenizer: trains the VQGAN on the training pictures."""

import argparse
import contextlib
import dataclasses
import pathlib
import sys

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.data import studies as studies_lib
from chexmix_jax.data.pipeline import image_iterator
from chexmix_jax.models.vqgan import VQGANConfig
from chexmix_jax.parallel.devices import warn_if_accelerator_unused
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.training.image_tokenizer import (
    ImageTokenizerTrainConfig,
    train_image_tokenizer,
)


@dataclasses.dataclass(frozen=True)
class ImageTokenizerConfig:
  """What a config file of this entry point holds."""

  model: VQGANConfig
  train: ImageTokenizerTrainConfig


def run(
    studies: pathlib.Path, output: pathlib.Path, config: ImageTokenizerConfig
) -> ImageTokenizer:
  """Trains on the studies and writes `output`; finished output is read instead."""
  pictures = studies_lib.read_card(studies)["request"]
  iterator = image_iterator(studies, "train", config.train.batch_size, config.train.seed)
  with contextlib.closing(iterator):
    return train_image_tokenizer(iterator, config.model, config.train, output, pictures)


def main(argv: list[str] | None = None) -> None:
  """The same command goes on from the newest checkpoint."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.train_image_tokenizer", description=__doc__
  )
  parser.add_argument("--studies", type=pathlib.Path, required=True, help="--output of prepare")
  parser.add_argument("--output", type=pathlib.Path, required=True)
  args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
  config, rest = cli.load_config(rest, schema=ImageTokenizerConfig)
  if rest:
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  warn_if_accelerator_unused()
  run(args.studies, args.output, config_lib.build(ImageTokenizerConfig, config.to_dict()))


if __name__ == "__main__":
  cli.entry(main)
