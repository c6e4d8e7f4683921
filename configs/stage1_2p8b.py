"""Stage 1 of the published 2.8-billion-parameter model: plain next-token prediction."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.train`."""
  return ml_collections.ConfigDict({
      # The published shape. A vocab_size of 0 takes that of the tokens.
      "model": {
          "vocab_size": 58562, "num_layers": 32, "width": 2560, "num_heads": 32, "mlp_dim": 10240,
          "rotary_dim": 32, "rope_base": 10000.0, "norm_eps": 1e-5, "dropout": 0.1,
          "qk_norm": False,
          # How it is computed: our choice.
          "dtype": "bfloat16", "attention": "auto", "scan_layers": True, "remat": "full",
          "adapter": None, "classifier": None,
      },
      # What follows is not public and our choice. A row holds four documents of 1,024 codes; in the
      # published context of 2,048 tokens there is room for one, and half of the row stays empty.
      "data": {
          "tokens": "runs/2p8b/tokens", "documents": "image report",
          "context": 4608, "batch_size": 256, "shuffle_seed": 0,
          "packing_rows": 64,
          "masking": {
              "image": {"prob": 0.0, "low": 0.0, "high": 0.0, "loss_on": "all", "weight": 1.0},
              "text": {"prob": 0.0, "low": 0.0, "high": 0.0, "loss_on": "all", "weight": 1.0},
          },
          "labels": {"policy": "mixed", "file": ""},
      },
      "optimizer": {
          "name": "adamw", "learning_rate": 1e-4, "warmup_steps": 1000, "end_fraction": 0.1,
          "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0,
          "moment_dtype": "float32",
      },
      # Parameters and optimizer state are split over all devices of the pod.
      "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
      "seed": 0,
      "steps": 20_000,
      "accumulation": 1,
      "init": "",
      "log_every": 20,
      "checkpoint_every": 500,
      "max_skipped": 10,
      "validation": None,
  })  # fmt: skip
