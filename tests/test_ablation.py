"""The ablation: which runs it makes, and what its report says of made-up results."""

import csv
import io
import json
import pathlib

import numpy as np
import pytest

from chexmix_jax import ablation, cli
from chexmix_jax import config as config_lib
from chexmix_jax.ablation import AblationConfig
from chexmix_jax.errors import UserError

ARMS = {
    "plain": {"image": {"prob": 0.0}, "text": {"prob": 0.0}},
    "text, only": {"image": {"weight": 0.0}},
}
FIGURES = {
    "classification": {"auroc/mask=0.00": 0.7, "auroc/mask=0.50": 0.6},
    "zero_shot": {"auroc": 0.5},
    "inpainting": {"masked_psnr/random/mask=0.50": 15.0},
    "generation": {"finding_f1_micro": 0.5, "finding_f1_micro/mask=0.50": 0.25},
    "retrieval": {"pool_size": 8.0},
}


@pytest.fixture
def config():
  path = pathlib.Path(__file__).parents[1] / "configs" / "ablation.py"
  values, _ = cli.load_config([f"--config={path}:phantom"])
  settings = values.to_dict() | {"arms": ARMS, "seeds": (0, 1), "reference": "plain"}
  settings["evaluate"]["classification"]["mask_ratios"] = (0.0, 0.5)
  settings["evaluate"]["generation"]["mask_ratios"] = (0.0, 0.5)
  settings["evaluate"]["inpainting"]["random_ratios"] = (0.5,)
  return config_lib.build(AblationConfig, settings)


def write_results(folder, offset):
  folder.mkdir(parents=True)
  for name, values in FIGURES.items():
    found = {
        "values": {key: value + offset for key, value in values.items()}, "intervals": {},
        "signature": name, "checkpoint_step": 1,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(found))
    samples = {"figures": np.array([], str), "replicates": np.zeros((0, 9)), "fingerprint": "x"}
    for suffix, arrays in (("npz", {}), ("samples.npz", samples)):
      buffer = io.BytesIO()
      np.savez(buffer, **arrays)
      (folder / f"{name}.{suffix}").write_bytes(buffer.getvalue())


def test_an_arm_changes_the_masking_of_stage_2_alone(config):
  base = config.quickstart.stage2.data.masking
  plain, text_only = config.masking("plain"), config.masking("text, only")
  assert plain.image.prob == plain.text.prob == 0 and plain.image.weight == base.image.weight
  assert text_only.image.weight == 0 and text_only.image.prob == base.image.prob
  assert text_only.text == base.text
  bad = AblationConfig(config.quickstart, {"x": {"picture": {}}}, "x")
  with pytest.raises(UserError, match="names 'picture'; use image or text"):
    bad.masking("x")
  with pytest.raises(UserError, match="reference='y' is none of arms: x"):
    AblationConfig(config.quickstart, {"x": {}}, "y")


def test_every_seed_trains_every_arm_from_one_stage_1(config, tmp_path, monkeypatch):
  trained, scored = [], []
  monkeypatch.setattr(ablation, "make_inputs", lambda *_: _Inputs())
  monkeypatch.setattr(
      ablation, "train", lambda settings, folder, description: trained.append((settings, folder))
  )

  class Scores:
    def __init__(self, inputs, config, seed):
      self.seed = seed

    def __call__(self, checkpoint, output):
      scored.append((self.seed, checkpoint.name))
      write_results(output, 0.1 * self.seed)

  monkeypatch.setattr(ablation, "Evaluator", Scores)
  ablation.run(config, "phantom:10", tmp_path)
  names = ["stage1", "plain", "text_only", "random_initialisation"]
  assert [folder.relative_to(tmp_path).parts for _, folder in trained] == [
      (f"seed{seed}", name) for seed in (0, 1) for name in names
  ]
  for settings, folder in trained:
    assert settings.seed == settings.data.shuffle_seed == int(folder.parent.name[-1])
    if folder.name in ("plain", "text_only"):
      assert settings.init == str(folder.parent / "stage1")
      assert settings.steps == config.quickstart.stage2.steps
  untrained = trained[3][0]
  assert untrained.steps == 1 and untrained.optimizer.learning_rate == 0 and not untrained.init
  assert scored == [(seed, name) for seed in (0, 1) for name in names[1:]]
  rows = list(csv.DictReader((tmp_path / "ablation.csv").open()))
  (row,) = (r for r in rows if (r["figure"], r["arm"]) == ("auroc/mask=0.50", "plain"))
  assert [round(float(row[key]), 6) for key in ("mean", "lowest", "highest")] == [0.65, 0.6, 0.7]
  page = (tmp_path / "ablation.html").read_text()
  assert "0.650 (0.600 – 0.700)" in page and "random initialisation" in page
  assert "data:image/png;base64," in page


class _Inputs:
  tokens = pathlib.Path("tokens")
