"""The published image tokenizer for the pictures of one place; its codes keep their meaning."""

import pathlib

import ml_collections

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.tokenizers.image import ImageTokenizer

_PUBLISHED = "runs/published/image_tokenizer"


def get_config(init: str = _PUBLISHED) -> ml_collections.ConfigDict:
  """What differs from configs/image_tokenizer_512.py: the start, the codebook, shorter steps.

  With `finetune_image_tokenizer.py:FOLDER` that is adapted, and the shape is its own.
  """
  path = pathlib.Path(__file__).with_name("image_tokenizer_512.py")
  config, _ = cli.load_config([], default=str(path))
  if init != _PUBLISHED:
    config.model = config_lib.to_dict(ImageTokenizer.load(pathlib.Path(init)).config)
  config.train.update({
      "init": init,
      # A tenth of a fresh one's rate: more of it changes the codes more.
      "steps": 2000, "batch_size": 8, "learning_rate": 1e-5, "warmup_steps": 100,
      # The codebook of init stays as it is.
      "codebook_start": 0, "restart_every": 0,
      "log_every": 20, "checkpoint_every": 200,
  })  # fmt: skip
  return config
