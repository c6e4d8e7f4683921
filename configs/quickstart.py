"""The main job at a size for two CPU cores: `phantom` (64 px, minutes) or `real` (128 px)."""

import ml_collections


def _stage(steps: int, learning_rate: float, context: int, batch_size: int, dropout: float, masking):
  """One stage's TrainConfig; the model is the same in both."""
  return {
      "model": {
          "num_layers": 4, "width": 128, "num_heads": 4, "mlp_dim": 512, "rotary_dim": 12,
          "dropout": dropout, "scan_layers": False,
      },
      "data": {"tokens": "", "context": context, "batch_size": batch_size, "masking": masking},
      "optimizer": {"learning_rate": learning_rate, "warmup_steps": 50},
      "steps": steps,
      "log_every": 20,
      "checkpoint_every": 200,
  }  # fmt: skip


def get_config(scale: str = "phantom") -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.quickstart`."""
  plain = {"image": {"weight": 0.3}, "text": {"weight": 1.0}}
  masked = {
      "image": {"prob": 0.8, "low": 0.1, "high": 0.95, "loss_on": "all", "weight": 0.3},
      "text": {"prob": 0.5, "low": 0.1, "high": 0.5, "loss_on": "all", "weight": 1.0},
  }
  real = {"phantom": False, "real": True}[scale]
  return ml_collections.ConfigDict({
      "size": 128 if real else 64,
      "image_tokenizer": {},
      "image_training": {},
      "text_vocab_size": 1500 if real else 640,
      "stage1": _stage(1000, 2e-3, 256, 32, 0.1, plain),
      "stage2": _stage(600, 1e-3, 256, 32, 0.1, masked),
  })
