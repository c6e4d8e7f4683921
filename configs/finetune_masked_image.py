"""Radiographs without reports: masked images, by an adapter on the 2.8-billion-parameter model."""

import pathlib

import ml_collections

from chexmix_jax import cli


def get_config(*init: str) -> ml_collections.ConfigDict:
  """What differs from configs/finetune_report.py: the documents and their masking."""
  path = pathlib.Path(__file__).with_name("finetune_report.py")
  config, _ = cli.load_config([], default=":".join((str(path), *init)))
  # A row is one image. As in stage 2 it is hidden in part, and all of its codes carry loss.
  config.data.documents = "image"
  config.data.context = 1026
  config.data.masking.image.update({"prob": 0.8, "low": 0.1, "high": 0.95})
  return config
