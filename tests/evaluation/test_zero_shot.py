"""Scores by likelihood, of a model that is told what it sees and of a random one."""

import numpy as np
import pytest

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import zero_shot
from chexmix_jax.evaluation.zero_shot import ZeroShot, ZeroShotConfig
from chexmix_jax.labels import PHRASES

CONFIG = ZeroShotConfig(findings=("Cardiomegaly", "Edema", "Fracture"))


def test_the_likelier_sentence_decides(context, monkeypatch, values_of):
  labels = labels_lib.apply_policy(tokens.load_tokens(context.tokens, "test").labels, "mixed")
  asked = []

  def likelihoods(config, vocabulary, params, image_ids, texts, *_):
    asked.extend(context.text_tokenizer.decode(text) for text in texts)
    heart = labels[:, labels_lib.INDEX["Cardiomegaly"]]
    # Sure of the heart, and wrong about edema.
    edema = labels[:, labels_lib.INDEX["Edema"]]
    return np.stack([heart, 1 - heart, 1 - edema, edema], axis=1)

  monkeypatch.setattr(zero_shot, "log_likelihoods", likelihoods)
  values = values_of(ZeroShot(context, CONFIG).run({}))
  assert values["auroc/Cardiomegaly"] == 1 and values["auroc/Edema"] == 0
  assert values["auroc"] == 0.5 and values["auprc/Cardiomegaly"] == 1
  assert values["num_findings"] == 2 and "auroc/Fracture" not in values
  assert asked == [*PHRASES["Cardiomegaly"], *PHRASES["Edema"]]


def test_a_finding_of_one_value_is_named(context, capsys):
  ZeroShot(context, CONFIG)
  assert "left out Fracture, which all or none" in capsys.readouterr().out


def test_a_model_gives_finite_scores(context, params, values_of):
  config = ZeroShotConfig(findings=("Edema", "Cardiomegaly"), num_studies=10, images_a_pass=4)
  result = ZeroShot(context, config).run(params)
  assert result.artefacts["scores"].shape == (10, 2)
  assert np.isfinite(result.artefacts["scores"]).all()
  assert 0 <= values_of(result)["auroc"] <= 1


def test_bad_settings():
  with pytest.raises(UserError, match="'Oedema'"):
    ZeroShotConfig(findings=("Oedema",))
  with pytest.raises(UserError, match="num_studies=0"):
    ZeroShotConfig(num_studies=0)
