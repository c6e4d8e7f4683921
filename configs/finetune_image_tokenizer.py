"""The published image tokenizer for the pictures of one place; its codes keep their meaning."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.train_image_tokenizer`."""
  return ml_collections.ConfigDict({
      # The shape of the one that is adapted.
      "model": {
          "resolution": 512, "in_channels": 3, "patch": 1, "width": 128,
          "channel_multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2,
          "attention_resolutions": (), "z_channels": 256, "embed_dim": 256, "num_codes": 8192,
          "num_groups": 32, "commitment": 0.25,
          "dtype": "float32",
      },
      "train": {
          "init": "runs/published/image_tokenizer",
          # A tenth of a fresh one's rate: more of it changes the codes more.
          "steps": 2000, "batch_size": 8, "learning_rate": 1e-5, "warmup_steps": 100,
          # The codebook of init stays as it is.
          "codebook_start": 0, "restart_every": 0,
          "gradient_weight": 1.0, "embedding_weight": 1.0, "seed": 0, "log_every": 20,
          "checkpoint_every": 200,
      },
  })  # fmt: skip
