"""Generated reports and their scores."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.data import images, studies, tokens
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.sources import source
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.generation import Generation, GenerationConfig
from chexmix_jax.evaluation.likelihood import own_log_likelihoods
from chexmix_jax.inference.generate import GenerateConfig, generate
from chexmix_jax.inference.reports import make_prompt
from chexmix_jax.labeler import label_report
from chexmix_jax.labels import INDEX, describe_labels
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.findings import FINDINGS
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


def run_with_texts(generation, monkeypatch, values_of, change):
  """The values of a model that writes `change(reference)`."""
  texts = [change(text) for text in generation._references]
  monkeypatch.setattr(generation, "_generate", lambda *_: (texts, np.zeros(len(texts), bool)))
  monkeypatch.setattr(generation, "_reference_nll", lambda *_: bootstrap.mean(np.ones(len(texts))))
  return values_of(generation.run({}))


def test_a_model_that_writes_the_references_is_perfect(generation, monkeypatch, values_of):
  values = run_with_texts(generation, monkeypatch, values_of, lambda text: text)
  for suffix in ("", "/uncertain_positive"):
    for name in ("precision", "recall", "f1"):
      assert values[f"finding_{name}_micro{suffix}"] == 1
      assert values[f"finding_{name}_macro{suffix}"] == 1
  assert values["exact_match"] == 1 and values["mean_words"] == values["reference_mean_words"]
  assert values["side_accuracy"] == values["rougeL_f1"] == 1
  assert values["bleu_4"] == pytest.approx(1)
  assert values["hallucinated"] == values["missed"] == 0


def test_sides_that_are_swapped_are_wrong_and_change_nothing_else(
    generation, monkeypatch, values_of
):
  def swap(text):
    return text.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")

  right = run_with_texts(generation, monkeypatch, values_of, lambda text: text)
  wrong = run_with_texts(generation, monkeypatch, values_of, swap)
  assert wrong["finding_f1_micro"] == right["finding_f1_micro"] == 1
  assert wrong["side_accuracy"] == 0 and wrong["exact_match"] < 1


def test_a_hedged_finding_counts_in_the_lenient_scores_alone(generation, monkeypatch, values_of):
  values = run_with_texts(
      generation, monkeypatch, values_of, lambda text: text.replace("There is", "There may be")
  )
  assert values["finding_f1/Edema"] == 0 and values["finding_f1/Cardiomegaly"] == 1
  assert values["finding_precision_micro"] == 1 and values["finding_recall_micro"] < 0.7
  assert values["finding_f1_micro/uncertain_positive"] == 1


def test_empty_reports_are_scored_as_reports_without_findings(generation, monkeypatch, values_of):
  values = run_with_texts(generation, monkeypatch, values_of, lambda text: "")
  assert values["finding_f1_micro"] == values["finding_precision_micro"] == 0
  assert values["mean_words"] == 0 and values["distinct_reports"] == 1
  assert values["num_empty"] == 10 and np.isnan(values["side_accuracy"])


def test_a_model_that_ends_at_once_writes_empty_reports(generation, params, vocabulary, values_of):
  head = {**params["lm_head"], "bias": params["lm_head"]["bias"].at[vocabulary.boi].add(1e3)}
  result = generation.run({**params, "lm_head": head})
  assert result.artefacts["generated"].tolist() == [""] * 10
  assert values_of(result)["unfinished"] == 0


@pytest.mark.parametrize("end", ["boi", "eot"])
def test_a_model_of_the_published_layout_may_end_with_either_id(
    end, context, model_config, bpe_dir, tmp_path, values_of
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
  assert values_of(result)["unfinished"] == 0


def test_the_nll_is_that_of_the_own_reports_with_their_ends(result, context, params, values_of):
  table, vocabulary = tokens.load_tokens(context.tokens, "test"), context.vocabulary
  texts, ids = table.texts[:10], vocabulary.codes_to_ids(table.codes[:10])
  prompts = [make_prompt(vocabulary, {"image": one}) for one in ids]
  found = own_log_likelihoods(
      context.model, vocabulary, params, prompts, texts, CONFIG.batch_size
  )
  expected = -found.sum() / sum(len(text) + 1 for text in texts)
  assert values_of(result)["report_nll"] == pytest.approx(expected, rel=1e-6)


def test_reports_are_what_greedy_generation_gives_for_the_pictures(
    result, context, params, values_of
):
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
  assert values_of(result)["unfinished"] == is_cut.mean()


def test_the_baselines_are_the_most_common_reports_of_the_training_split(
    result, context, values_of
):
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
    assert np.min(np.abs(np.array(scores) - values_of(result)[f"{name}/finding_f1_micro"])) < 1e-12
  assert values_of(result)["most_common_positive_report/finding_f1_micro"] > 0


def test_pictures_are_hidden_and_the_indication_goes_before_the_report(
    context, monkeypatch, params
):
  config = dataclasses.replace(CONFIG, mask_ratios=(0.0, 0.5), indication=True)
  evaluation = Generation(context, config)
  evaluation._indications = ["left lungs"] * 10
  given, scored = [], []

  def generate_ids(config, vocabulary, params, prompts, *_):
    given.append(prompts)
    return [np.array([vocabulary.boi], np.int32)] * len(prompts)

  def own_log_likelihoods(config, vocabulary, params, prompts, texts, *_):
    scored.append(prompts)
    return np.zeros(len(texts))

  monkeypatch.setattr("chexmix_jax.evaluation.generation.generate_ids", generate_ids)
  monkeypatch.setattr("chexmix_jax.evaluation.generation.own_log_likelihoods", own_log_likelihoods)
  result = evaluation.run(params)
  plain, masked, indicated = given
  assert [[row.tolist() for row in rows] for rows in scored] == [
      [row.tolist() for row in rows] for rows in given
  ]
  assert {int((row == context.vocabulary.mask).sum()) for row in masked} == {8}
  text = context.text_tokenizer.encode("left lungs")
  for row, expected in zip(indicated, plain, strict=True):
    assert row.tolist() == [*expected, *text]
  assert {"bleu_4", "bleu_4/mask=0.50", "bleu_4/with_indication"} <= set(result.figures)
  assert result.values["num_empty/mask=0.50"] == 10


def make_picture(seed, size):
  return np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)


@pytest.fixture(scope="module")
def asked(context, tmp_path_factory):
  """The context with 12 test studies, of two views; of some there is a question, yes or no."""
  rows = []
  for i in range(15):
    labels = np.zeros(14, np.int8)
    labels[[INDEX["Edema"], INDEX["Fracture"]]] = i % 2, i % 3 == 0
    rows.append(
        source.Row(
            f"s{i}", f"p{i}", "test" if i < 12 else "train", f"row {i}",
            pictures=tuple(
                source.Picture(view, f"{view}{i}", functools.partial(make_picture, [i, number]))
                for number, view in enumerate(("lateral", "frontal"))
            ),
            labels=labels,
            question="is it large?" if i >= 4 else "",
            answer=("no" if i % 4 == 0 else "yes") if i >= 4 else "",
        )
    )  # fmt: skip
  folder = tmp_path_factory.mktemp("asked")
  made = source.gather({"source": "asked"}, rows, merge=False)
  write_studies(made, folder / "studies", LoadOptions(16), WriteOptions())
  write_tokens(
      folder / "studies", context.image_tokenizer, context.text_tokenizer, context.vocabulary,
      folder / "tokens",
  )  # fmt: skip
  return dataclasses.replace(context, studies=folder / "studies", tokens=folder / "tokens")


def test_answers_are_written_after_their_questions(asked, monkeypatch, values_of):
  config = dataclasses.replace(CONFIG, documents="image (question) answer", num_studies=7)
  evaluation = Generation(asked, config)
  vocabulary, encode = asked.vocabulary, asked.text_tokenizer.encode
  given = []

  def generate_ids(config, vocabulary, params, prompts, *_):
    given.extend(prompts)
    return [np.array([*encode("no"), vocabulary.boi], np.int32)] * len(prompts)

  monkeypatch.setattr("chexmix_jax.evaluation.generation.generate_ids", generate_ids)
  monkeypatch.setattr(Generation, "_reference_nll", lambda one, *_: bootstrap.mean(
      np.ones(len(one._texts))
  ))  # fmt: skip
  result = evaluation.run({})
  assert result.artefacts["study_ids"].tolist() == [f"s{i}" for i in range(4, 11)]
  assert result.artefacts["references"].tolist() == (["no", *["yes"] * 3] * 2)[:7]
  boi, eoi, eot = vocabulary.boi, vocabulary.eoi, vocabulary.eot
  for i, prompt in enumerate(given, start=4):
    pixels = images.to_float(make_picture([i, 1], 16))[None, ..., None]
    codes = asked.image_tokenizer.encode(pixels).reshape(-1)
    ids = [boi, *vocabulary.codes_to_ids(codes), eoi, eot, *encode("is it large?"), eot]
    assert prompt.tolist() == ids
  values = values_of(result)
  assert values["exact_match"] == pytest.approx(2 / 7)
  # Of the training split two answers of three are yes.
  assert values["most_common_report/exact_match"] == pytest.approx(5 / 7)
  assert values["num_studies"] == 7 and values["num_left_out"] == 4
  assert not any("finding" in name or "positive" in name for name in result.figures)
  assert result.options["prompt"] == "image,question" and result.options["text"] == "answer"
  assert "findings" not in result.options


def test_labels_in_words_after_two_views(asked, monkeypatch, values_of):
  config = dataclasses.replace(
      CONFIG, documents="frontal lateral labels", num_studies=99, mask_ratios=(0.5,)
  )
  evaluation = Generation(asked, config)
  labels = [row["labels"] for row in tokens.open_tokens(asked.tokens, "test")]
  said = list(filter(None, map(describe_labels, labels)))
  assert evaluation._references == said and evaluation._num_left_out == 12 - len(said) > 0
  given = []

  def generate_ids(config, vocabulary, params, prompts, *_):
    given.extend(prompts)
    return [np.array(asked.text_tokenizer.encode(text), np.int32) for text in said]

  monkeypatch.setattr("chexmix_jax.evaluation.generation.generate_ids", generate_ids)
  monkeypatch.setattr(Generation, "_reference_nll", lambda one, *_: bootstrap.mean(
      np.ones(len(one._texts))
  ))  # fmt: skip
  result = evaluation.run({})
  values = values_of(result)
  assert values["finding_f1/Edema"] == values["exact_match"] == 1
  for prompt in given:
    frontal, lateral = (prompt[1:17] == asked.vocabulary.mask, prompt[19:35])
    assert frontal.sum() == (lateral == asked.vocabulary.mask).sum() == 8
    assert len(prompt) == 37
  assert any(
      (prompt[1:17] == asked.vocabulary.mask).tolist()
      != (prompt[19:35] == asked.vocabulary.mask).tolist()
      for prompt in given
  )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"documents": "image"}, r"generation\.documents: 'image' must be one form"),
        ({"documents": "image text"}, r"generation\.documents: 'image text' is no form"),
        ({"documents": "image findings", "indication": True}, "default documents alone"),
    ],
)
def test_documents_that_make_no_sense_are_named(settings, message):
  with pytest.raises(UserError, match=message):
    GenerationConfig(**settings)


def test_a_part_that_no_study_has_is_named(context):
  config = dataclasses.replace(CONFIG, documents="image (question) answer")
  with pytest.raises(UserError, match=r"No study of test in .* all of 'image \(question\) answer'"):
    Generation(context, config)


def test_a_missing_split_and_a_size_of_nothing_are_named(context):
  with pytest.raises(UserError, match="has no split 'other'"):
    Generation(dataclasses.replace(context, split="other"), CONFIG)
  with pytest.raises(UserError, match="num_studies=0"):
    GenerationConfig(num_studies=0)
