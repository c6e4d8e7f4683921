"""The image tokenizer in the published model's shape, 512 pixels to 32 x 32 codes."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.train_image_tokenizer`."""
  return ml_collections.ConfigDict({
      # The published shape.
      "model": {
          "resolution": 512, "in_channels": 3, "patch": 1, "width": 128,
          "channel_multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2,
          "attention_resolutions": (), "z_channels": 256, "embed_dim": 256, "num_codes": 8192,
          "num_groups": 32, "commitment": 0.25,
          # How it is computed: our choice.
          "dtype": "float32",
      },
      # Nothing of the training is public: our choice.
      "train": {
          "init": "",
          "steps": 100_000, "batch_size": 32, "learning_rate": 1e-4, "warmup_steps": 1000,
          "codebook_start": 2000, "restart_every": 500, "gradient_weight": 1.0,
          "embedding_weight": 1.0, "seed": 0, "log_every": 100, "checkpoint_every": 1000,
      },
  })  # fmt: skip
