import dataclasses

import numpy as np
import pytest

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import classification
from chexmix_jax.evaluation.classification import Classification, ClassificationConfig

CONFIG = ClassificationConfig(mask_ratios=(0.0, 0.5, 1.0), findings=labels_lib.CHEXPERT_14)
FOUND = ["Cardiomegaly", "Edema", "Pneumothorax", "Pleural Effusion"]


def random_embeddings(config, vocabulary, params, image_ids, *rest):
  return np.random.default_rng(0).normal(size=(len(image_ids), 1, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def evaluation(context):
  return Classification(context, CONFIG)


@pytest.fixture(scope="module")
def result(evaluation, params):
  return evaluation.run(params)


def test_figures_are_those_of_the_scores(result, context, values_of):
  values, artefacts = values_of(result), result.artefacts
  assert artefacts["findings"].tolist() == FOUND  # In the order of the 14, those with cases.
  assert (values["num_findings"], values["num_train"], values["num_test"]) == (4, 90, 30)
  metrics = pytest.importorskip("sklearn.metrics")
  labels = labels_lib.apply_policy(tokens.load_tokens(context.tokens, "test").labels, "mixed")
  for m, ratio in enumerate(("0.00", "0.50", "1.00")):
    layer = artefacts["layer"][m]
    per_finding = []
    for f, finding in enumerate(FOUND):
      expected = metrics.roc_auc_score(
          labels[:, labels_lib.INDEX[finding]], artefacts["scores"][m, :, f]
      )
      assert values[f"auroc/mask={ratio}/{finding}"] == pytest.approx(expected, abs=1e-12)
      per_finding.append(expected)
    assert values[f"auroc/mask={ratio}"] == pytest.approx(np.mean(per_finding), abs=1e-12)
    assert values[f"auroc/mask={ratio}"] == values[f"auroc/mask={ratio}/layer={layer}"]
    for k in range(context.model.num_layers + 1):
      expected = artefacts["auroc"][m, k].mean()
      assert values[f"auroc/mask={ratio}/layer={k}"] == pytest.approx(expected, abs=1e-12)
  assert all(np.isfinite(value) for value in values.values())


def test_the_layer_is_chosen_by_validation(result):
  validation = result.artefacts["validation_auroc"].mean(-1)
  np.testing.assert_array_equal(result.artefacts["layer"], validation.argmax(1))


def test_findings_are_seen_in_whole_pictures_and_not_in_hidden_ones(result, values_of):
  # Squares in the picture move even random features; where all is hidden every study is the same.
  assert values_of(result)["auroc/mask=0.00"] > 0.75
  assert values_of(result)["auroc/mask=1.00"] == pytest.approx(0.5, abs=1e-12)
  assert values_of(result)["random_init/auroc/mask=0.00"] > 0.75
  assert values_of(result)["random_init/auroc/mask=1.00"] == pytest.approx(0.5, abs=1e-12)


def test_a_second_run_gives_the_same_and_does_not_repeat_the_baseline(
    evaluation, result, params, monkeypatch, values_of
):
  passes = []
  embed_images = classification.embed_images

  def counted(*args):
    passes.append(args)
    return embed_images(*args)

  monkeypatch.setattr(classification, "embed_images", counted)
  again = evaluation.run(params)
  assert values_of(again) == values_of(result)
  assert len(passes) == len(CONFIG.mask_ratios)


def test_what_is_hidden(context, monkeypatch, params):
  shown = []

  def embed_images(config, vocabulary, params, image_ids, *rest):
    shown.append(image_ids)
    return random_embeddings(config, vocabulary, params, image_ids)

  monkeypatch.setattr(classification, "embed_images", embed_images)
  Classification(context, ClassificationConfig(mask_ratios=(0.25, 0.6))).run(params)
  vocabulary = context.vocabulary
  codes = np.concatenate(
      [tokens.load_tokens(context.tokens, name).codes for name in ("train", "val", "test")]
  )
  quarter, more = (ids == vocabulary.mask for ids in shown[:2])
  assert set(quarter.sum(1)) == {4} and set(more.sum(1)) == {10}  # Of 16; 9.6 is rounded.
  np.testing.assert_array_equal(shown[0][~quarter], vocabulary.codes_to_ids(codes)[~quarter])
  # The baseline sees the same.
  np.testing.assert_array_equal(shown[2], shown[0])
  # Studies differ; study number i is hidden alike in every split; a larger ratio hides more.
  assert len({row.tobytes() for row in quarter[:90]}) > 60
  np.testing.assert_array_equal(quarter[:30], quarter[90:120])
  np.testing.assert_array_equal(quarter[:30], quarter[120:])
  assert np.all(more[quarter])


def test_findings_with_too_few_cases_are_left_out_and_named(context, params, capsys):
  labels = tokens.load_tokens(context.tokens, "val").labels[:, labels_lib.INDEX["Edema"]]
  edema = int((labels != labels_lib.NEGATIVE).sum())  # By the policy, hedged ones count.
  assert (labels == labels_lib.UNCERTAIN).any()
  for least, left_out in ((edema, "Fracture"), (edema + 1, "Fracture, Edema")):
    config = ClassificationConfig(findings=("Fracture", "Edema"), min_cases=least)
    Classification(context, config)
    assert f"left out {left_out}, with fewer than {least} " in capsys.readouterr().out


def test_without_any_finding_only_the_counts_are_given(context, params):
  config = dataclasses.replace(CONFIG, findings=("Fracture",))
  result = Classification(context, config).run(params)
  assert result.values == {"num_findings": 0, "num_left_out": 1, "num_train": 90, "num_test": 30}


def test_training_studies_are_limited_by_lot(context, monkeypatch, params):
  fitted = []
  fit_probes = classification.fit_probes

  def spy(features, targets, strengths):
    fitted.append(targets)
    return fit_probes(features, targets, strengths)

  monkeypatch.setattr(classification, "fit_probes", spy)
  monkeypatch.setattr(classification, "embed_images", random_embeddings)
  config = ClassificationConfig(mask_ratios=(0.0,), max_train=50)
  for seed in (0, 1):
    result = Classification(dataclasses.replace(context, seed=seed), config).run(params)
    assert result.values["num_train"] == 50
  assert {len(targets) for targets in fitted} == {50}
  assert np.any(fitted[0] != fitted[2])


def test_fewer_labels_are_a_part_of_all_and_what_has_one_value_is_left_out(
    context, monkeypatch, params, values_of
):
  fitted = []
  fit_probes = classification.fit_probes

  def spy(features, targets, strengths):
    fitted.append(targets.shape)
    return fit_probes(features, targets, strengths)

  monkeypatch.setattr(classification, "fit_probes", spy)
  config = ClassificationConfig(
      mask_ratios=(0.0,), findings=tuple(FOUND), label_fractions=(0.03, 1.0)
  )
  result = Classification(context, config).run(params)
  values = values_of(result)
  assert fitted[0] == (90, 4) and fitted[1][0] == 3 and fitted[1][1] < 4
  few = [name for name in FOUND if f"auroc/mask=0.00/labels=0.03/{name}" in values]
  assert len(few) == fitted[1][1]
  expected = np.mean([values[f"auroc/mask=0.00/labels=0.03/{name}"] for name in few])
  assert values["auroc/mask=0.00/labels=0.03"] == pytest.approx(expected)
  assert values["auroc/mask=0.00/labels=0.03"] < values["auroc/mask=0.00"]


def test_areas_of_precision_and_brier_scores_are_scikit_learns(result, values_of):
  metrics = pytest.importorskip("sklearn.metrics")
  values, artefacts = values_of(result), result.artefacts
  for f, finding in enumerate(FOUND):
    truth, scores = artefacts["targets"][:, f], artefacts["scores"][0, :, f].astype(np.float64)
    expected = metrics.average_precision_score(truth, scores)
    assert values[f"auprc/mask=0.00/{finding}"] == pytest.approx(expected, abs=1e-12)
    expected = metrics.brier_score_loss(truth, 1 / (1 + np.exp(-scores)))
    assert values[f"brier/mask=0.00/{finding}"] == pytest.approx(expected, abs=1e-6)


def test_uncertain_labels_are_left_out_when_ignored(context, params):
  config = dataclasses.replace(CONFIG, policy="ignore", mask_ratios=(0.0,))
  result = Classification(context, config).run(params)
  labels = tokens.load_tokens(context.tokens, "test").labels
  columns = [labels_lib.INDEX[name] for name in result.artefacts["findings"]]
  unknown = np.isnan(result.artefacts["targets"])
  np.testing.assert_array_equal(unknown, labels[:, columns] == labels_lib.UNCERTAIN)
  assert unknown.any() and result.options["policy"] == "ignore"


@pytest.mark.parametrize(("aggregate", "expected"), [("mean", [2, 5]), ("max", [3, 5])])
def test_pictures_of_a_study_share_one_score(context, aggregate, expected):
  evaluation = Classification(context, dataclasses.replace(CONFIG, aggregate=aggregate))
  split = dataclasses.replace(
      evaluation._splits["test"], codes=np.zeros((3, 16), int), starts=np.array([0, 2])
  )
  scores = np.array([1.0, 3.0, 5.0])[:, None, None, None]
  assert evaluation._of_studies(scores, split).ravel().tolist() == expected


def test_attention_is_fitted_to_the_studies_of_each_share(
    context, params, monkeypatch, values_of, result
):
  fitted = []
  fit_queries = classification.fit_queries

  def spy(*args):
    fitted.append(args[4].shape)
    return fit_queries(*args)

  monkeypatch.setattr(classification, "fit_queries", spy)
  config = dataclasses.replace(
      CONFIG, pooling="attention", mask_ratios=(0.0,), label_fractions=(0.5, 1.0)
  )
  found = Classification(context, config).run(params)
  assert fitted == [(90, 4), (45, 4)] * 2  # The second time for the untrained baseline.
  assert found.options["pooling"] == "attention"
  assert values_of(found)["auroc/mask=0.00"] > values_of(result)["auroc/mask=0.00"] - 0.02


def test_labels_of_a_file_count_instead_of_those_of_the_records(
    context, params, result, tmp_path, capsys, values_of
):
  lines = ["study_id,Heart,Always"]
  for split in ("train", "val", "test"):
    table = tokens.load_tokens(context.tokens, split)
    hearts = table.labels[:, labels_lib.INDEX["Cardiomegaly"]]
    # Uncertain ones are not positive in `mixed`, of this finding.
    rows = zip(table.study_ids, hearts, strict=True)
    lines += [f"{study},{int(heart == 1)},1" for study, heart in rows]
  path = tmp_path / "labels.csv"
  path.write_text("\n".join(lines[:-1]))
  config = dataclasses.replace(
      CONFIG, label_file=str(path), findings=("Heart", "Always"), mask_ratios=(0.0,)
  )
  evaluation = Classification(context, config)
  said = capsys.readouterr().out
  assert f"1 of 30 studies of test are not in {path}" in said
  assert "left out Always, with fewer than 5" in said
  found = evaluation.run(params)
  assert found.artefacts["findings"].tolist() == ["Heart"]
  assert found.values["num_test"] == 29 and found.options["labels"].startswith("labels.csv@")
  column = FOUND.index("Cardiomegaly")
  expected = result.artefacts["targets"][:-1, column]
  np.testing.assert_array_equal(found.artefacts["targets"][:, 0], expected)
  layer = found.artefacts["layer"][0]
  auroc = values_of(found)["auroc/mask=0.00/Heart"]
  assert auroc == pytest.approx(found.artefacts["auroc"][0, layer, 0], abs=1e-12)
  assert auroc > 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratios": (0.5, 1.5)}, "mask_ratios="),
        ({"label_fractions": (0.0, 1.0)}, "label_fractions="),
        ({"findings": ("Oedema",)}, "'Oedema'.* or name a label_file"),
        ({"strengths": (1.0, 0.0)}, "strengths="),
    ],
)
def test_bad_settings(settings, message):
  with pytest.raises(UserError, match=message):
    ClassificationConfig(**settings)
