"""python -m chexmix_jax.train_image_tokenizer: trains the VQGAN, or adapts one, on pictures."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys

import numpy as np

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.data import images as images_lib
from chexmix_jax.data import studies as studies_lib
from chexmix_jax.data.pipeline import image_iterator
from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole
from chexmix_jax.models.vqgan import VQGANConfig
from chexmix_jax.parallel.devices import warn_if_accelerator_unused
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.training.adapted_image_tokenizer import compare, load_base
from chexmix_jax.training.image_tokenizer import (
  ImageTokenizerTrainConfig,
  train_image_tokenizer,
)

_HELD_OUT = 128  # At 512 pixels some minutes on two cores.


@dataclasses.dataclass(frozen=True)
class ImageTokenizerConfig:
  """What a config file of this entry point holds."""

  model: VQGANConfig
  train: ImageTokenizerTrainConfig


def run(
    studies: pathlib.Path, output: pathlib.Path, config: ImageTokenizerConfig
) -> ImageTokenizer:
  """Trains on the studies and writes `output`; finished output is read instead.

  One that is adapted is compared with what it started from, on pictures of split val.
  """
  pictures = studies_lib.read_card(studies)["request"]
  init = config.train.init
  base = load_base(pathlib.Path(init), config.model) if init else None
  held_out = _held_out(studies) if init else None  # Where there are none, it is said before hours.
  iterator = image_iterator(studies, "train", config.train.batch_size, config.train.seed)
  with contextlib.closing(iterator):
    tokenizer = train_image_tokenizer(
        iterator, config.model, config.train, output, pictures, base
    )
  if base is not None and held_out is not None:
    found = compare(base, tokenizer, held_out)
    facts = json.dumps({"pictures": len(held_out), **found}, indent=2)
    write_whole(output.with_name(f"{output.name}.training") / "comparison.json", facts)
    print(
        f"{len(held_out)} pictures of val: PSNR {found['base_psnr']:.2f} dB by {init},"
        f" {found['adapted_psnr']:.2f} dB by {output}; {found['same_codes']:.0%} of the codes are"
        " the same"
    )
  return tokenizer


def _held_out(studies: pathlib.Path) -> np.ndarray:
  """float32 (N, H, W, 1) in [-1, 1]: the first pictures of the first studies of val."""
  rows = studies_lib.open_studies(studies, "val", ("pictures",))
  if not len(rows):
    raise UserError(
        f"{studies} has no picture in split val, on which an adapted image tokenizer is compared"
        " with the one of init; prepare studies with some."
    )
  some = [studies_lib.first_picture(rows[i]) for i in range(min(len(rows), _HELD_OUT))]
  return images_lib.to_float(np.stack(some))[..., None]


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
