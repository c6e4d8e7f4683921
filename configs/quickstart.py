"""The main job at a size for two CPU cores: `phantom` (64 px, minutes) or `real` (128 px)."""

import math

import ml_collections

# Stage 2 masks images more often and deeper than reports, and learns from every target.
_MASKING = {
    "image": {"prob": 0.5, "low": 0.1, "high": 0.95, "loss_on": "all", "weight": 0.2},
    "text": {"prob": 0.2, "low": 0.1, "high": 0.5, "loss_on": "all", "weight": 1.0},
}
_NO_MASKING = {"image": {"weight": 0.2}, "text": {"weight": 1.0}}


def get_config(scale: str = "phantom") -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.quickstart`; both stages share the model."""
  real = {"phantom": False, "real": True}[scale]
  columns, pair = (16, 3) if real else (8, 1)
  head_dim = 32
  # Every dimension of a head is rotated, and one pair of them turns once in a row of codes, so that
  # a code's column is easy to tell; the published base of 10,000 has no such pair.
  rope_base = (columns / (2 * math.pi)) ** (head_dim / (2 * pair))

  def stage(steps, learning_rate, masking):
    return {
        "model": {
            "vocab_size": 0, "num_layers": 3 if real else 4, "width": 128 if real else 64,
            "num_heads": 4 if real else 2, "mlp_dim": 512 if real else 256, "rotary_dim": head_dim,
            "rope_base": rope_base, "dropout": 0.1 if real else 0.0,
            "scan_layers": False,
        },
        "data": {
            "tokens": "", "context": 640 if real else 208, "batch_size": 4 if real else 12,
            "masking": masking,
        },
        "optimizer": {"name": "muon", "learning_rate": learning_rate, "warmup_steps": 50},
        "steps": steps,
        "log_every": 20,
        "checkpoint_every": 200,
    }  # fmt: skip

  return ml_collections.ConfigDict({
      "size": 128 if real else 64,
      "image_tokenizer": {
          "model": {
              "resolution": 128 if real else 64, "in_channels": 1, "patch": 2, "width": 16,
              "channel_multipliers": (1, 2, 4), "num_res_blocks": 1, "num_groups": 8,
              "z_channels": 64, "embed_dim": 32, "num_codes": 256 if real else 192,
          },
          "train": {
              "steps": 450, "batch_size": 8, "learning_rate": 3e-3,
              "codebook_start": 100, "restart_every": 50, "checkpoint_every": 100,
          },
      },
      "text_vocab_size": 1000 if real else 640,
      "stage1": stage(450 if real else 620, 0.015 if real else 0.025, _NO_MASKING),
      "stage2": stage(450 if real else 600, 0.01 if real else 0.02, _MASKING),
  })  # fmt: skip
