"""Protocols of chexmix_jax.evaluate: `quick` (minutes on two CPU cores), `paper`, and others.

`nih14` is `paper` with the findings of NIH ChestX-ray14, of which records do not have all: name its
table by --config.classification.label_file=PATH/Data_Entry_2017_v2020.csv. `validation` is what a
training run chooses its best checkpoint by, whole images on some studies of the val split.
"""

import ml_collections

from chexmix_jax.labels import NIH14

_PAPER = {
    "classification": {
        "mask_ratios": (0.0, 0.1, 0.25, 0.5, 0.75, 0.85, 0.9, 0.95),
        "label_fractions": (0.01, 0.1, 1.0),
        "strengths": (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4),
        "max_train": 1_000_000,
    },
    "inpainting": {"num_studies": 1000, "num_validation": 200},
    "generation": {
        "mask_ratios": (0.0, 0.25, 0.5, 0.75, 0.9, 0.95), "indication": True, "max_new": 200,
        "num_studies": 1_000_000,
    },
    "retrieval": {"pool_size": 1000, "validation_pool_size": 200},
}  # fmt: skip

_VALIDATION = {
    "split": "val",
    "classification": {"mask_ratios": (0.0,), "max_train": 500},
    "zero_shot": {"num_studies": 100},
    "inpainting": {"methods": ("one_pass",), "num_studies": 32, "num_validation": 32},
    "generation": {"num_studies": 100},
}


def get_config(protocol: str = "quick") -> ml_collections.ConfigDict:
  """What differs from the defaults of the evaluations."""
  config = ml_collections.ConfigDict(
      {"quick": {}, "paper": _PAPER, "nih14": _PAPER, "validation": _VALIDATION}[protocol]
  )
  if protocol == "nih14":
    config.classification.findings = NIH14
    config.classification.label_file = "Data_Entry_2017_v2020.csv"
  return config
