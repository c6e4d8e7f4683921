"""What an image tokenizer is adapted from, and how the two compare on pictures of the new place."""

import pathlib

import jax
import numpy as np

from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError
from chexmix_jax.metrics.images import psnr
from chexmix_jax.models.vqgan import VQGANConfig
from chexmix_jax.tokenizers.image import ImageTokenizer

_HOW = ("dtype",)  # How a network is computed, not what it is.


def load_base(folder: pathlib.Path, config: VQGANConfig) -> ImageTokenizer:
  """The image tokenizer in a folder, to be adapted as `config`.

  Raises UserError that names what differs where the two have not the same shape.
  """
  base = ImageTokenizer.load(folder)
  theirs, ours = config_lib.to_dict(base.config), config_lib.to_dict(config)
  differing = [name for name in config_lib.differing(theirs, ours) if name not in _HOW]
  if differing:
    facts = ", ".join(f"{name}={theirs[name]}, not {ours[name]}" for name in differing)
    raise UserError(
        f"init={folder} has {facts}; take the settings of {folder / 'config.json'} for model."
    )
  return base


def compare(
    base: ImageTokenizer, adapted: ImageTokenizer, pixels: np.ndarray
) -> dict[str, float]:
  """`base_psnr` and `adapted_psnr` in dB, and `same_codes`, the share of codes that both give.

  Over pictures float32 (N, H, W, 1) in [-1, 1].
  """
  codes = {"base": base.encode(pixels), "adapted": adapted.encode(pixels)}
  result = {"same_codes": float(np.mean(codes["base"] == codes["adapted"]))}
  for name, tokenizer in (("base", base), ("adapted", adapted)):
    drawn = tokenizer.decode(codes[name]).mean(-1)  # Grey, in however many channels.
    found = jax.jit(psnr)((drawn + 1) / 2, (pixels[..., 0] + 1) / 2)
    result[f"{name}_psnr"] = float(np.mean(found))
  return result
