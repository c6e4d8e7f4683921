"""An adapter beside full fine-tuning, on findings that the model has not seen: two CPU cores."""

import pathlib

import ml_collections

from chexmix_jax import cli

# Four kinds each beside the devices, of those that 64 pixels show: fracture and thickening are
# lost, nodule and pneumonia mostly. Reports deny what is not there, so the pretrained model knows
# the words of the second half, and none of its pictures. What reports never deny, or deny in other
# words, is in the first: devices, the heart and the mediastinum.
_FIRST = (
    "effusion", "consolidation", "cardiomegaly", "mediastinum", "pacemaker", "central line",
    "endotracheal tube",
)  # fmt: skip
_SECOND = ("pneumothorax", "atelectasis", "edema", "opacity")

_ALL = ("attn.*", "mlp.*")
_BIASES = ("layers.*.bias", "layers.norm.scale", "final_norm.*", "lm_head.bias")


def get_config() -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.adaptation`: tokenizers of the quickstart."""
  path = pathlib.Path(__file__).with_name("quickstart.py")
  values, _ = cli.load_config([], default=f"{path}:phantom")
  for stage in (values.stage1, values.stage2):
    # Wide and shallow, so that rank 1 beside every matrix is less than 2 % of the parameters.
    stage.model.update({"num_layers": 3, "width": 128, "num_heads": 4, "mlp_dim": 512})
    stage.data.batch_size = 8
  values.stage1.update({"steps": 2000})
  values.stage1.optimizer.learning_rate = 0.02
  # Loss on the report alone.
  values.stage2.data.masking = {"image": {"weight": 0.0}, "text": {"weight": 1.0}}
  values.stage2.update({"steps": 1000})
  values.stage2.optimizer = {"name": "adamw", "warmup_steps": 30, "weight_decay": 0.0}
  return ml_collections.ConfigDict({
      "quickstart": values,
      "num_studies": 4500,
      "num_adapted": 1000,
      "first": _FIRST,
      "second": _SECOND,
      # The better of 1e-3 and 2e-3, and of 1e-2 and 2e-2, in validation after 600 steps.
      "arms": {
          "full fine-tuning": {"learning_rates": (2e-3,)},
          "LoRA of rank 1 with biases": {
              "learning_rates": (2e-2,),
              "adapter": {
                  "kind": "lora", "rank": 1, "alpha": 2.0, "targets": _ALL, "train": _BIASES
              },
          },
      },
      "reference": "full fine-tuning",
      "seeds": (0, 1, 2),
      "evaluate": {"generation": {"num_studies": 450}},
  })  # fmt: skip
