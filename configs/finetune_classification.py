"""Findings in radiographs: a classifier, trained with an adapter on the 2.8-billion model."""

import pathlib

import ml_collections

from chexmix_jax import cli
from chexmix_jax.labels import CHEXPERT_14


def get_config(*init: str) -> ml_collections.ConfigDict:
  """What differs from configs/finetune_report.py: the classifier, the documents, their masking."""
  path = pathlib.Path(__file__).with_name("finetune_report.py")
  config, _ = cli.load_config([], default=":".join((str(path), *init)))
  # CheXmix's authors advise layers 7 to 12 of 32; those behind are not computed.
  layer = round(12 / 32 * config.model.num_layers)
  config.model.classifier = {"findings": CHEXPERT_14, "layer": layer}
  # A row is one picture of 1,024 codes. Hidden codes are the augmentation.
  config.data.documents = "image"
  config.data.context = 1026
  config.data.masking.image.update({"prob": 0.5, "low": 0.0, "high": 0.5})
  return config
