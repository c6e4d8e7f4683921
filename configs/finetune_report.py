"""Reports for the radiographs of one place, by an adapter on the 2.8-billion-parameter model."""

import pathlib

import ml_collections

from chexmix_jax.training.checkpoint import read_job

_PUBLISHED = "runs/published"
_SHAPE = (
    "num_layers", "width", "num_heads", "mlp_dim", "rotary_dim", "rope_base", "norm_eps", "qk_norm"
)  # fmt: skip


def get_config(init: str = _PUBLISHED) -> ml_collections.ConfigDict:
  """The settings of `python -m chexmix_jax.train`; `init` names the run or converted folder.

  With `finetune_report.py:RUN` that is RUN, and the shape is that of its model.
  """
  config = ml_collections.ConfigDict({
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
          "classifier": None,
      },
      # What stands in brackets is seen and carries no loss. `report` is what prepare composed, by
      # default findings and impression; `findings` or `impression` in its place take one of them.
      # The second form is for studies without an indication and for half of the others. A document
      # of 1,024 codes and a report fits.
      "data": {
          "tokens": "runs/mine/tokens",
          "documents": "(image) (indication) report, (image) report",
          "context": 1300, "batch_size": 16, "shuffle_seed": 0,
          "packing_rows": 16,
          "masking": {
              "image": {"prob": 0.0, "low": 0.0, "high": 0.0, "loss_on": "all", "weight": 1.0},
              "text": {"prob": 0.0, "low": 0.0, "high": 0.0, "loss_on": "all", "weight": 1.0},
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
      "init": init,
      "log_every": 10,
      "checkpoint_every": 50,
      "max_skipped": 10,
      # The best checkpoint is that of the least loss on reports of the val split.
      "validation": {
          "studies": 200, "metric": "loss", "patience": 5,
          "evaluation": {
              "studies": "", "tokens": "", "image_tokenizer": "", "text_tokenizer": "",
              "protocol": "",
          },
      },
  })  # fmt: skip
  if init != _PUBLISHED:
    shape = read_job(pathlib.Path(init))["train"]["model"]
    config.model.update({name: shape[name] for name in _SHAPE})
  return config
