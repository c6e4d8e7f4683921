"""The card of a run: what it says, and what it keeps to itself."""

import json

import numpy as np
import pytest

from chexmix_jax import model_card
from chexmix_jax.errors import UserError

MODEL = {
    "vocab_size": 40, "num_layers": 2, "width": 16, "num_heads": 2, "mlp_dim": 32, "rotary_dim": 4,
}  # fmt: skip
ADAPTER = {"kind": "dora", "rank": 2, "alpha": 4.0, "targets": ["attn.q"], "base": "int8"}
MASK = {"prob": 0.5, "low": 0.1, "high": 0.9, "loss_on": "all", "weight": 1.0}


def write_run(folder, init="", **job):
  (folder / "checkpoints" / "7").mkdir(parents=True)
  train = {
      "model": MODEL, "init": init, "steps": 7, "seed": 3,
      "data": {
          "batch_size": 4, "context": 64, "documents": "image report",
          "masking": {"image": MASK, "text": {**MASK, "prob": 0.0}},
      },
      "optimizer": {
          "name": "adamw", "learning_rate": 1e-3, "warmup_steps": 2, "weight_decay": 0.1
      },
  }  # fmt: skip
  tokens = {
      "request": {"studies": {"source": "openi", "size": 64, "data_dir": "/home/someone/openi"}},
      "image_tokenizer": "ab" * 32,
  }
  train |= job.pop("train", {})
  (folder / "job.json").write_text(json.dumps({"train": train, "tokens": tokens, **job}))
  return folder


def write_evaluation(folder, signature):
  folder.mkdir()
  found = {
      "values": {"auroc/mask=0.00": 0.71, "random_init/auroc/mask=0.00": 0.6},
      "intervals": {"auroc/mask=0.00": [0.6, 0.8]}, "signature": signature, "checkpoint_step": 7,
  }  # fmt: skip
  (folder / "classification.json").write_text(json.dumps(found))
  np.savez(folder / "classification.npz", x=np.zeros(1))
  np.savez(
      folder / "classification.samples.npz", figures=np.array([], str),
      replicates=np.zeros((0, 3)), fingerprint="x",
  )  # fmt: skip
  return folder


@pytest.fixture
def run(tmp_path):
  base = write_run(tmp_path / "converted")
  (base / "NOTICE").write_text("The weights are not for sale.\n")
  folder = write_run(
      tmp_path / "mine", str(base), train={"model": {**MODEL, "adapter": ADAPTER}},
      base={"step": 7, "job_sha256": "cd" * 32},
  )  # fmt: skip
  (folder / "metrics.jsonl").write_text(
      '{"step": 6, "loss": 9, "skipped": 0}\n{"step": 7, "loss": 1.2345, "skipped": 1}\n'
  )
  return folder


def test_a_card_has_settings_scores_and_notices(run, tmp_path):
  signature = "chexmix_jax:0.1.0|checkpoint:mine@7|inputs:0"
  evaluation = write_evaluation(tmp_path / "evaluation", signature)
  output = tmp_path / "card.md"
  model_card.main([f"--checkpoint={run}", f"--evaluation={evaluation}", f"--output={output}"])
  card = output.read_text()
  assert card.startswith("# mine, step 7\n") and card.count("not for clinical use") == 1
  assert "| adapter | dora, rank 2, alpha 4, on attn.q; base in int8; " in card
  # A and B and the lengths of the columns, of both layers.
  assert f"{2 * (16 * 2 + 2 * 16 + 16)} parameters are trained" in card
  assert "| base | converted, step 7, job cdcdcdcd |" in card
  assert "| image | 50% of the documents masked at 0.1 to 0.9; loss on all targets" in card
  assert "| text | never masked; loss on all targets, weight 1 |" in card
  assert "| last steps | loss 1.234 |" in card or "| last steps | loss 1.235 |" in card
  assert "| 0.710 | 0.600 – 0.800 | random initialisation 0.600 |" in card
  assert f"- `{signature}`" in card
  assert "Notice of `converted`:\n\n> The weights are not for sale." in card
  assert "someone" not in card and str(tmp_path) not in card


def test_a_relative_base_above_the_run_keeps_its_notice(run, tmp_path):
  folder = write_run(tmp_path / "further", "mine")
  model_card.main([f"--checkpoint={folder}", f"--output={tmp_path / 'card.md'}"])
  assert "Notice of `converted`:" in (tmp_path / "card.md").read_text()


def test_what_does_not_belong_together_is_named(run, tmp_path):
  other = write_evaluation(tmp_path / "evaluation", "chexmix_jax:0.1.0|checkpoint:mine@70|x:0")
  output = f"--output={tmp_path / 'card.md'}"
  with pytest.raises(UserError, match=r"evaluation is not of checkpoint:mine@7; evaluate that"):
    model_card.main([f"--checkpoint={run}", f"--evaluation={other}", output])
  with pytest.raises(UserError, match="is not a run directory"):
    model_card.main([f"--checkpoint={tmp_path}", output])
  (run / "checkpoints" / "7").rmdir()
  with pytest.raises(UserError, match="mine has no checkpoint"):
    model_card.main([f"--checkpoint={run}", output])
  assert not (tmp_path / "card.md").exists()
