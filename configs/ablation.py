"""What the loss is taken on, compared: `phantom` (two CPU cores, hours) or `real`."""

import pathlib

import ml_collections

from chexmix_jax import cli

_NONE = {"prob": 0.0}
_RATIOS = (0.0, 0.5, 0.75, 0.9)

# What an arm changes in the masking of stage 2; the rates of masking are those of the quickstart.
_ARMS = {
    "stage 1 only": {"image": _NONE, "text": _NONE},
    "loss on all": {},
    "loss on masked": {"image": {"loss_on": "masked"}, "text": {"loss_on": "masked"}},
    "loss on visible": {"image": {"loss_on": "visible"}, "text": {"loss_on": "visible"}},
    "visible images, masked text": {
        "image": {"loss_on": "visible"}, "text": {"loss_on": "masked"}
    },
    "masked images, all text": {"image": {"loss_on": "masked"}},
    "text only": {"image": {"weight": 0.0}},
    "image only": {"text": {"weight": 0.0}},
}  # fmt: skip


def get_config(scale: str = "phantom") -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.ablation`: sizes of the quickstart, arms, protocols."""
  path = pathlib.Path(__file__).with_name("quickstart.py")
  values, _ = cli.load_config([], default=f"{path}:{scale}")
  return ml_collections.ConfigDict({
      "quickstart": values,
      "arms": _ARMS,
      "reference": "stage 1 only",
      "seeds": (0, 1, 2),
      "evaluate": {
          "classification": {"mask_ratios": _RATIOS},
          "inpainting": {
              "random_ratios": (0.25, 0.5, 0.75, 0.9), "block_ratios": (), "lungs_ratios": (),
              "methods": ("one_pass",),
          },
          "generation": {"mask_ratios": _RATIOS, "num_studies": 200},
      },
  })  # fmt: skip
