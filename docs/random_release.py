"""Writes random weights in the published files' layout, to try and to time what reads them.

  python docs/random_release.py runs/random [--small]

Makes OUTPUT/model.safetensors (bfloat16, 5.6 GB), config.json and OUTPUT/vqgan.ckpt (float32); with
--small, 4 layers of width 320 with the same image tokenizer.
"""

import argparse
import json
import pathlib

import ml_dtypes
import numpy as np

from chexmix_jax.conversion import phi, vqgan
from chexmix_jax.conversion.tensors import write_file
from chexmix_jax.conversion.torch_file import write_state_dict
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.models.vqgan import VQGANConfig
from chexmix_jax.tokenizers.vocabulary import Vocabulary

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_SMALL = TransformerConfig(num_layers=4, width=320, num_heads=4, mlp_dim=1280)


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("output", type=pathlib.Path)
  parser.add_argument("--small", action="store_true")
  args = parser.parse_args()
  args.output.mkdir(parents=True)
  rng = np.random.default_rng(0)
  pool = 0.02 * rng.standard_normal(1 << 24, np.float32)

  def draw(name: str, shape: tuple[int, ...], numbers: np.ndarray) -> np.ndarray:
    """A stretch of the pool, from anywhere in it; ones for the scales of norms."""
    if len(shape) == 1 and "norm" in name and name.endswith("weight"):
      return np.ones(shape, numbers.dtype)
    size = int(np.prod(shape))
    start = rng.integers(max(len(numbers) - size, 1))
    return np.resize(numbers[start : start + size], shape)

  config = _SMALL if args.small else TransformerConfig()
  narrow = pool.astype(_BFLOAT16)
  sources = [
      (name, shape, lambda name=name, shape=shape: draw(name, shape, narrow))
      for name, shape in phi.torch_shapes(config).items()
  ]
  write_file(args.output / "model.safetensors", sources, _BFLOAT16)
  settings = phi.config_to_torch(config, Vocabulary.published().eot, 2048)
  (args.output / "config.json").write_text(json.dumps(settings, indent=2))
  shapes = vqgan.torch_shapes(VQGANConfig())
  write_state_dict(
      args.output / "vqgan.ckpt", {name: draw(name, shape, pool) for name, shape in shapes.items()}
  )


if __name__ == "__main__":
  main()
