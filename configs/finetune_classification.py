"""Findings in radiographs: a classifier, trained with an adapter on the 2.8-billion model."""

import ml_collections

from chexmix_jax.labels import CHEXPERT_14


def get_config() -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.train`; `init` names the run or converted folder."""
  return ml_collections.ConfigDict({
      # The shape of the model that is adapted. A vocab_size of 0 takes that of the tokens.
      "model": {
          "vocab_size": 0, "num_layers": 32, "width": 2560, "num_heads": 32, "mlp_dim": 10240,
          "rotary_dim": 32, "rope_base": 10000.0, "norm_eps": 1e-5, "dropout": 0.0,
          "qk_norm": False,
          "dtype": "bfloat16", "attention": "auto", "scan_layers": True, "remat": "full",
          "adapter": {
              "kind": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.05,
              "targets": ("attn.*", "mlp.*"), "train": (), "rows": (), "base": "float",
          },
          # CheXmix's authors advise layers 7 to 12; those behind are not computed.
          "classifier": {"findings": CHEXPERT_14, "layer": 12},
      },
      # A row is one picture of 1,024 codes. Reports are not needed.
      "data": {
          "tokens": "runs/mine/tokens", "documents": "image",
          "context": 1026, "batch_size": 16, "shuffle_seed": 0,
          "packing_rows": 16,
          # Hidden codes are the augmentation; no token carries loss where a classifier is trained.
          "masking": {
              "image": {"prob": 0.5, "low": 0.0, "high": 0.5, "loss_on": "all", "weight": 0.0},
              "text": {"prob": 0.0, "low": 0.0, "high": 0.0, "loss_on": "all", "weight": 0.0},
          },
          "labels": {"policy": "mixed", "file": ""},
      },
      "optimizer": {
          "name": "adamw", "learning_rate": 2e-4, "warmup_steps": 50, "end_fraction": 0.1,
          "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0,
          "moment_dtype": "float32",
      },
      "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
      "seed": 0,
      "steps": 500,
      # Rows go through one by one: 16 GB are enough.
      "accumulation": 16,
      "init": "runs/published",
      "log_every": 10,
      "checkpoint_every": 50,
      "max_skipped": 10,
  })  # fmt: skip
