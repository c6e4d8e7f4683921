"""The findings of radiographs in words, by an adapter on the 2.8-billion-parameter model."""

import pathlib

import ml_collections

from chexmix_jax import cli


def get_config(*init: str) -> ml_collections.ConfigDict:
  """What differs from configs/finetune_report.py: the documents."""
  path = pathlib.Path(__file__).with_name("finetune_report.py")
  config, _ = cli.load_config([], default=":".join((str(path), *init)))
  # Loss is on the sentences that say the labels.
  config.data.documents = "(image) labels"
  return config
