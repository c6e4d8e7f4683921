"""Classifiers that are trained: what they learn, and what comes of their runs."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from chexmix_jax import convert, predict
from chexmix_jax import labels as labels_lib
from chexmix_jax.conversion.tensors import SafetensorsFiles
from chexmix_jax.data import images, studies, tokens
from chexmix_jax.data.masking import MaskingConfig
from chexmix_jax.data.pipeline import DataConfig, make_plan, train_iterator
from chexmix_jax.data.targets import LabelConfig
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.classification import Classification, ClassificationConfig
from chexmix_jax.inference.model import load, load_model
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.models.classifier import ClassifierConfig
from chexmix_jax.training.checkpoint import read_job
from chexmix_jax.training.loop import train
from chexmix_jax.training.optimizer import OptimizerConfig
from chexmix_jax.training.setup import TrainConfig
from chexmix_jax.training.validation import ValidationConfig

FINDINGS = ("Edema", "Cardiomegaly", "Pleural Effusion")
ASKED = ClassificationConfig(
    method="classifier", mask_ratios=(0.0,), findings=("Cardiomegaly", "Edema")
)


def make_config(context, tokens_dir, **settings):
  model = dataclasses.replace(
      context.model, vocab_size=0, dropout=0.0, classifier=ClassifierConfig(FINDINGS, 1)
  )
  return TrainConfig(
      model=model,
      data=DataConfig(str(tokens_dir), context=54, batch_size=8, documents="image"),
      optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=5),
      steps=40, checkpoint_every=40, log_every=20,
      **settings,
  )  # fmt: skip


@pytest.fixture(scope="module")
def run(context, tokens_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("classifier") / "run"
  train(make_config(context, tokens_dir, validation=ValidationConfig(studies=9)), folder)
  return folder


def score(context, folder, config=ASKED):
  found = load_model(folder)
  context = dataclasses.replace(context, model=found.config)
  return Classification(context, config).run(found.params)


def test_it_learns_what_the_pictures_show(context, run, values_of):
  result = score(context, run)
  values = values_of(result)
  assert values["auroc/mask=0.00"] > 0.85
  assert not [name for name in values if "layer" in name]
  assert "the model's own classifier" in result.options["probe"]
  # The same figure as a probe's, so that both can be compared; and its baseline.
  probe = values_of(score(context, run, dataclasses.replace(ASKED, method="probe")))
  assert {name for name in probe if "layer" not in name} == set(values)


def test_it_can_be_scored_on_the_val_split(context, run, values_of):
  config = dataclasses.replace(ASKED, min_cases=1)
  values = values_of(score(dataclasses.replace(context, split="val"), run, config))
  assert 0 <= values["auroc/mask=0.00"] <= 1 and values["num_test"] > 1


def test_its_validations_have_the_loss_of_findings_alone(run):
  first, last = map(json.loads, (run / "validation.jsonl").read_text().splitlines())
  assert set(first) == set(last) == {"step", "loss", "train_loss"}
  assert first["loss"] == pytest.approx(np.log(2), abs=0.3)  # It knows nothing yet.
  assert last["train_loss"] < first["train_loss"] - 0.2


def test_pictures_get_the_probabilities_that_are_scored(
    context, run, tmp_path, image_tokenizer, text_tokenizer_path, studies_dir
):
  image_tokenizer.save(tmp_path / "image_tokenizer")
  model = load(run, image_tokenizer=tmp_path / "image_tokenizer")
  pictures = studies.load_studies(studies_dir, "test").images[:5]
  odds = score(context, run).artefacts["scores"][0, :5]
  found = model.classify(images.to_float(pictures))
  np.testing.assert_allclose(found[:, [1, 0]], 1 / (1 + np.exp(-odds)), atol=1e-5)
  (tmp_path / "pictures").mkdir()
  for i, picture in enumerate(pictures):
    Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
  (tmp_path / "pictures" / "5.png").write_bytes(b"no picture")
  output = tmp_path / "found.csv"
  predict.main([
      "classify", f"--checkpoint={run}", f"--image_tokenizer={tmp_path / 'image_tokenizer'}",
      f"--input={tmp_path / 'pictures'}", f"--output={output}",
  ])  # fmt: skip
  rows = list(csv.DictReader(output.open()))
  assert list(rows[0]) == ["input", "image", *FINDINGS, "error"]
  found = [[float(row[name]) for name in FINDINGS] for row in rows[:5]]
  expected = model.classify([tmp_path / "pictures" / f"{i}.png" for i in range(5)])
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert rows[5]["error"] and not rows[5]["Edema"]


def test_an_adapter_keeps_its_classifier_and_another_run_starts_from_it(
    context, run, tokens_dir, tmp_path, values_of
):
  config = make_config(context, tokens_dir, init=str(run))
  classifier = ClassifierConfig(("Edema",), -1)
  model = dataclasses.replace(config.model, adapter=AdapterConfig(rank=2), classifier=classifier)
  train(dataclasses.replace(config, model=model), tmp_path / "adapted")
  asked = dataclasses.replace(ASKED, findings=("Edema",), mask_ratios=(0.0, 1.0))
  values = values_of(score(context, tmp_path / "adapted", asked))
  assert values["auroc/mask=0.00"] > 0.85 and values["auroc/mask=1.00"] == 0.5
  for command in ("to_torch", "to_peft"):  # PyTorch gets the classifier beside the model.
    folder = tmp_path / command
    convert.main([command, f"--checkpoint={tmp_path / 'adapted'}", f"--output={folder}"])
    tensors = SafetensorsFiles(folder / "classifier.safetensors")
    ours = load_model(tmp_path / "adapted").params["classifier"]
    states = np.random.default_rng(0).normal(size=(5, context.model.width))
    standard = (states - ours["mean"]) * ours["scale"]
    expected = standard @ np.asarray(ours["linear"]["kernel"]) + ours["linear"]["bias"]
    odds = states @ tensors["weight"].T + tensors["bias"]
    np.testing.assert_allclose(odds, expected, rtol=1e-4, atol=1e-4)
    described = json.loads((folder / "classifier.json").read_text())
    assert described == {"findings": ["Edema"], "layer": 2}
  with pytest.raises(UserError, match="no classifier of 'Cardiomegaly'; it has Edema"):
    score(context, tmp_path / "adapted")


def test_batches_carry_the_labels_of_their_documents(context, tokens_dir):
  config = make_config(context, tokens_dir).data
  batch = next(iterator := train_iterator(config, plan=make_plan(config, FINDINGS)))
  iterator.close()
  by_codes = {
      row["codes"][0].tobytes(): labels_lib.apply_policy(row["labels"], "mixed")
      for row in tokens.open_tokens(tokens_dir, "train")
  }
  columns = [labels_lib.INDEX[name] for name in FINDINGS]
  seen = 0
  for ids, segments, labels in zip(
      batch["inputs"], batch["segment_ids"], batch["labels"], strict=True
  ):
    count = segments.max()
    assert np.isnan(labels[count:]).all()
    for segment in range(1, count + 1):
      codes = context.vocabulary.ids_to_codes(ids[segments == segment][1:-1])
      expected = by_codes[codes.astype(np.int32).tobytes()][columns]
      np.testing.assert_array_equal(labels[segment - 1], expected)
      seen += 1
  assert seen == 24  # Three pictures of 18 tokens in each row of 54.


def test_a_table_says_which_studies_are_trained_on(context, tokens_dir, tmp_path):
  path = tmp_path / "labels.csv"
  with path.open("w") as file:
    writer = csv.writer(file)
    writer.writerows([["study_id", "Silicosis"], ["s0", "1"], ["s1", "0"], ["s2", ""]])
  config = make_config(context, tokens_dir)
  data = dataclasses.replace(config.data, labels=LabelConfig("mixed", str(path)))
  plan = make_plan(data, ("Silicosis",))
  assert plan.num_studies == 3
  batch = next(iterator := train_iterator(data, plan=plan))
  iterator.close()
  labels = batch["labels"][np.isfinite(batch["labels"])]
  assert set(labels) == {0.0, 1.0}
  model = dataclasses.replace(config.model, classifier=ClassifierConfig(("Silicosis",)))
  config = dataclasses.replace(config, model=model, data=data, steps=1, checkpoint_every=1)
  train(config, tmp_path / "run")
  assert len(read_job(tmp_path / "run")["labels_sha256"]) == 64


@pytest.mark.parametrize(
    "findings, documents, sentence",
    [(("Silicosis",), "image", "or name a label file"), (FINDINGS, "report", "needs a picture")],
)
def test_what_cannot_be_trained_is_said(context, tokens_dir, findings, documents, sentence):
  data = dataclasses.replace(
      make_config(context, tokens_dir).data, documents=documents, masking=MaskingConfig()
  )
  with pytest.raises(UserError, match=sentence):
    make_plan(data, findings)
