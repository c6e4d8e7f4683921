"""Generated reports and their scores."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.data import studies, tokens
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.generation import (
    FINDINGS,
    Generation,
    GenerationConfig,
    finding_scores,
    side_agreement,
)
from chexmix_jax.inference.generate import GenerateConfig, generate
from chexmix_jax.labeler import label_report
from chexmix_jax.labels import INDEX
from chexmix_jax.models.transformer import abstract_params
from chexmix_jax.tokenizers.bpe import BPETokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary

CONFIG = GenerationConfig(max_new=12, num_studies=10, batch_size=4)


@pytest.fixture(scope="module")
def generation(context):
  return Generation(context, CONFIG)


@pytest.fixture(scope="module")
def result(generation, params):
  return generation.run(params)


def run_with_texts(generation, monkeypatch, change):
  """The values of a model that writes `change(reference)`."""
  texts = [change(text) for text in generation._references]
  monkeypatch.setattr(generation, "_generate", lambda params: (texts, np.zeros(len(texts), bool)))
  return generation.run({}).values


def test_scores_are_scikit_learns_over_the_findings_that_references_have():
  metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
  rng = np.random.default_rng(0)
  true, predicted = rng.random((2, 40, len(FINDINGS))) < 0.2
  true[:, 3] = False  # Left out of the means over findings; its false positives count otherwise.
  predicted[:, 4] = False
  values = finding_scores(true, predicted, by_finding=True)
  there = [i for i in range(len(FINDINGS)) if i != 3]
  for name in ("precision", "recall", "f1"):
    score = getattr(metrics, f"{name}_score")
    micro = score(true, predicted, average="micro")
    macro = score(true[:, there], predicted[:, there], average="macro", zero_division=0)
    np.testing.assert_allclose(values[f"finding_{name}_micro"], micro, rtol=1e-12)
    np.testing.assert_allclose(values[f"finding_{name}_macro"], macro, rtol=1e-12)
  each = metrics.f1_score(true, predicted, average=None, zero_division=0)
  for i, name in enumerate(FINDINGS):
    if i == 3:
      assert f"finding_f1/{name}" not in values
    else:
      np.testing.assert_allclose(values[f"finding_f1/{name}"], each[i], rtol=1e-12)
  assert values["num_findings"] == len(FINDINGS) - 1


def test_nothing_to_find_and_nothing_found_is_no_crash():
  nothing = np.zeros((3, len(FINDINGS)), bool)
  assert set(finding_scores(nothing, nothing).values()) == {0.0}


def test_the_side_counts_where_the_reference_names_one():
  effusion = FINDINGS.index("Pleural Effusion")
  pairs = [
      ("There is a left pleural effusion.", "Small left pleural effusion.", True),
      ("There is a left pleural effusion.", "There is a right pleural effusion.", False),
      ("There is a left pleural effusion.", "There is a pleural effusion.", False),
      ("Bilateral pleural effusions.", "Left pleural effusion. Right pleural effusion.", True),
      ("Bilateral pleural effusions.", "Left pleural effusion.", False),
      ("There is a pleural effusion.", "There is a left pleural effusion.", None),
  ]
  for reference, text, is_right in pairs:
    both = np.zeros((1, len(FINDINGS)), bool)
    assert side_agreement([reference], [text], both) == (0, 0)
    both[0, effusion] = True
    expected = (0, 0) if is_right is None else (int(is_right), 1)
    assert side_agreement([reference], [text], both) == expected, (reference, text)


def test_a_model_that_writes_the_references_is_perfect(generation, monkeypatch):
  values = run_with_texts(generation, monkeypatch, lambda text: text)
  for suffix in ("", "/uncertain_positive"):
    for name in ("precision", "recall", "f1"):
      assert values[f"finding_{name}_micro{suffix}"] == 1
      assert values[f"finding_{name}_macro{suffix}"] == 1
  assert values["exact_match"] == 1 and values["mean_words"] == values["reference_mean_words"]
  assert values["side_accuracy"] == 1 and values["side_count"] > 1


def test_sides_that_are_swapped_are_wrong_and_change_nothing_else(generation, monkeypatch):
  def swap(text):
    return text.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")

  right = run_with_texts(generation, monkeypatch, lambda text: text)
  wrong = run_with_texts(generation, monkeypatch, swap)
  assert wrong["finding_f1_micro"] == 1 and wrong["side_count"] == right["side_count"]
  assert wrong["side_accuracy"] == 0 and wrong["exact_match"] < 1


def test_a_hedged_finding_counts_in_the_lenient_scores_alone(generation, monkeypatch):
  values = run_with_texts(
      generation, monkeypatch, lambda text: text.replace("There is", "There may be")
  )
  assert values["finding_f1/Edema"] == 0 and values["finding_f1/Cardiomegaly"] == 1
  assert values["finding_precision_micro"] == 1 and values["finding_recall_micro"] < 0.7
  assert values["finding_f1_micro/uncertain_positive"] == 1


def test_empty_reports_are_scored_as_reports_without_findings(generation, monkeypatch):
  values = run_with_texts(generation, monkeypatch, lambda text: "")
  assert values["finding_f1_micro"] == values["finding_precision_micro"] == 0
  assert values["mean_words"] == 0 and values["distinct_reports"] == 1
  assert values["side_count"] == 0 and "side_accuracy" not in values


def test_a_model_that_ends_at_once_writes_empty_reports(generation, params, vocabulary):
  head = {**params["lm_head"], "bias": params["lm_head"]["bias"].at[vocabulary.boi].add(1e3)}
  result = generation.run({**params, "lm_head": head})
  assert result.artefacts["generated"].tolist() == [""] * 10
  assert result.values["unfinished"] == 0


@pytest.mark.parametrize("end", ["boi", "eot"])
def test_a_model_of_the_published_layout_may_end_with_either_id(
    end, context, model_config, bpe_dir, tmp_path
):
  reader = BPETokenizer.load(bpe_dir)
  vocabulary = Vocabulary.bpe(reader.vocab_size, context.image_tokenizer.num_codes)
  write_tokens(
      context.studies, context.image_tokenizer, reader, vocabulary, tmp_path / "tokens"
  )
  model = dataclasses.replace(model_config, vocab_size=vocabulary.size)
  changed = dataclasses.replace(
      context, model=model, vocabulary=vocabulary, tokens=tmp_path / "tokens", text_tokenizer=reader
  )
  params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(model))
  bias = params["lm_head"]["bias"].at[getattr(vocabulary, end)].set(1.0)
  params["lm_head"] = {**params["lm_head"], "bias": bias}
  result = Generation(changed, CONFIG).run(params)
  assert result.artefacts["generated"].tolist() == [""] * 10
  assert result.values["unfinished"] == 0


def test_reports_are_what_greedy_generation_gives_for_the_pictures(result, context, params):
  vocabulary = context.vocabulary
  table = tokens.load_tokens(context.tokens, "test")
  prompts = jnp.array([
      [vocabulary.boi, *vocabulary.codes_to_ids(codes), vocabulary.eoi, vocabulary.eot]
      for codes in table.codes[:10]
  ])
  options = GenerateConfig(max_new=12, stop_ids=(vocabulary.boi,))
  new = generate(
      context.model, params, vocabulary, prompts, jnp.full(10, prompts.shape[1]), options
  )
  texts = [
      " ".join(context.text_tokenizer.decode([i for i in row if i < vocabulary.num_text]).split())
      for row in np.asarray(new)
  ]
  assert result.artefacts["generated"].tolist() == texts
  assert result.artefacts["study_ids"].tolist() == table.study_ids[:10]
  references = studies.load_studies(context.studies, "test").reports[:10]
  assert result.artefacts["references"].tolist() == references
  assert result.values["num_studies"] == 10
  assert result.values["distinct_reports"] == len(set(texts))
  is_cut = ~np.any(np.asarray(new) == vocabulary.boi, axis=1)
  assert result.values["unfinished"] == is_cut.mean()


def test_the_baselines_are_the_most_common_reports_of_the_training_split(result, context):
  counts = collections.Counter(studies.load_studies(context.studies, "train").reports)
  columns = [INDEX[name] for name in FINDINGS]
  references = studies.load_studies(context.studies, "test").reports[:10]
  true = np.array([label_report(text)[columns] == 1 for text in references])
  positive = {
      text: count for text, count in counts.items() if np.any(label_report(text)[columns] == 1)
  }
  for name, pool in (("most_common_report", counts), ("most_common_positive_report", positive)):
    # Several reports may be equally common: it is one of them.
    scores = []
    for text, count in pool.items():
      if count == max(pool.values()):
        predicted = np.tile(label_report(text)[columns] == 1, (len(true), 1))
        hits = (true & predicted).sum()
        scores.append(2 * hits / max(true.sum() + predicted.sum(), 1))
    assert np.min(np.abs(np.array(scores) - result.values[f"{name}/finding_f1_micro"])) < 1e-12
  assert result.values["most_common_positive_report/finding_f1_micro"] > 0


def test_a_missing_split_and_a_size_of_nothing_are_named(context):
  with pytest.raises(UserError, match="has no split 'other'"):
    Generation(dataclasses.replace(context, split="other"), CONFIG)
  with pytest.raises(UserError, match="num_studies=0"):
    GenerationConfig(num_studies=0)
