import itertools

import numpy as np
import pytest

from chexmix_jax.data import tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import retrieval
from chexmix_jax.evaluation.retrieval import (
    Retrieval,
    RetrievalConfig,
    chance_of_hit,
    ranks_of_best,
)

CONFIG = RetrievalConfig(pool_size=12, validation_pool_size=6, reports_a_pass=12)


def test_the_rank_is_that_of_the_best_relevant_candidate():
  scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [np.nan, 0.0, 1.0]])
  relevant = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0], [1, 0, 0]], bool)
  # Third row: a tie counts against the model. Fourth: so does a score that is not a number.
  np.testing.assert_array_equal(ranks_of_best(scores, relevant), [1, 2, 3, 3])


def test_chance_is_the_mean_over_all_rankings():
  counts = np.array([1, 2, 2, 1, 4])
  rankings = list(itertools.permutations(range(5)))
  hits = [
      np.mean([min(r.index(c) for c in range(count)) < k for r in rankings for count in counts])
      for k in range(1, 6)
  ]
  np.testing.assert_allclose(chance_of_hit(counts), hits, rtol=1e-12)
  np.testing.assert_allclose(chance_of_hit(np.ones(100, int)), np.arange(1, 101) / 100)


@pytest.fixture(scope="module")
def result(context, params):
  return Retrieval(context, CONFIG).run(params)


def test_figures_are_those_of_the_ranks(result, values_of):
  values, artefacts = values_of(result), result.artefacts
  scores = [
      *(f"cosine/layer={k}" for k in range(3)), "log_likelihood", "log_likelihood_per_token",
      "pmi/alpha=0.5", "pmi/alpha=1",
  ]  # fmt: skip
  assert values["pool_size"] == 12
  for direction in ("image_to_report", "report_to_image"):
    chosen = str(artefacts[f"{direction}/score"])
    for score in scores:
      ranks = artefacts[f"{direction}/ranks/{score}"]
      assert ranks.shape == (12,) and ranks.min() >= 1 and ranks.max() <= 12
      for k in (1, 5, 10):
        assert values[f"{direction}/recall@{k}/{score}"] == np.mean(ranks <= k)
        assert values[f"{direction}/recall@{k}"] == values[f"{direction}/recall@{k}/{chosen}"]
        assert 0 < values[f"chance/{direction}/recall@{k}"] <= 1
      assert values[f"{direction}/median_rank/{score}"] == np.median(ranks)
    assert values[f"chance/{direction}/recall@1"] >= 1 / 12 - 1e-12
  # By pictures, what is subtracted of a report or divided by is the same for all candidates.
  for score in ("log_likelihood_per_token", "pmi/alpha=1"):
    np.testing.assert_array_equal(
        artefacts[f"report_to_image/ranks/{score}"],
        artefacts["report_to_image/ranks/log_likelihood"],
    )


def test_pools_take_other_patients_first_and_never_more_than_there_are(context, params):
  table = tokens.load_tokens(context.tokens, "test")
  patient_of = dict(zip(table.study_ids, table.patient_ids, strict=True))
  for size, patients in ((10, 10), (20, 15), (100, 15)):
    pool = Retrieval(context, RetrievalConfig(pool_size=size))._test
    assert len(pool.study_ids) == len(set(pool.study_ids)) == min(size, 30)
    assert len({patient_of[study] for study in pool.study_ids}) == patients


@pytest.fixture
def planted(context, monkeypatch):
  """Makes likelihoods where each report's own picture stands out by 1, above a prior of its own."""

  def likelihoods(config, vocabulary, params, image_ids, texts, *rest):
    table = {
        vocabulary.codes_to_ids(codes).tobytes(): text.tobytes()
        for name in ("val", "test")
        for codes, text in zip(
            tokens.load_tokens(context.tokens, name).codes,
            tokens.load_tokens(context.tokens, name).texts,
            strict=True,
        )
    }
    own = [[table.get(i.tobytes()) == text.tobytes() for text in texts] for i in image_ids]
    prior = np.random.default_rng(len(texts)).normal(size=len(texts)) * 100
    return (np.array(own) + prior).astype(np.float32)

  monkeypatch.setattr(retrieval, "log_likelihoods", likelihoods)


def test_a_prior_of_reports_hides_what_pmi_finds(context, params, planted, values_of):
  values = values_of(Retrieval(context, CONFIG).run(params))
  assert values["image_to_report/recall@1/log_likelihood"] < 0.5
  assert values["image_to_report/recall@1/pmi/alpha=1"] == 1
  assert values["report_to_image/recall@1/log_likelihood"] == 1
  # Validation finds that out, and the headline follows it.
  assert values["image_to_report/recall@1"] == values["report_to_image/recall@1"] == 1
  assert values["image_to_report/median_rank"] == 1


def test_a_report_that_reads_the_same_is_right(context, params, planted, values_of):
  evaluation = Retrieval(context, RetrievalConfig(pool_size=30, validation_pool_size=6))
  texts = [text.tobytes() for text in evaluation._test.texts]
  counts = np.array([texts.count(text) for text in texts])
  assert counts.max() > 1
  values = values_of(evaluation.run(params))
  assert values["image_to_report/recall@1/pmi/alpha=1"] == 1
  assert values["chance/image_to_report/recall@1"] == pytest.approx(np.mean(counts / 30))


def test_the_score_is_chosen_in_validation_only(context, params, monkeypatch, values_of):
  evaluation = Retrieval(context, CONFIG)

  def ranks(self, pool, params, description):
    good, bad = np.ones(len(pool.texts), int), np.full(len(pool.texts), 9)
    test = pool is evaluation._test
    return {
        name: {"a": bad if test else good, "b": good if test else bad}
        for name in ("image_to_report", "report_to_image")
    }

  monkeypatch.setattr(Retrieval, "_ranks", ranks)
  values = values_of(evaluation.run(params))
  assert values["image_to_report/recall@5"] == 0 and values["image_to_report/recall@5/b"] == 1


def test_bad_settings():
  with pytest.raises(UserError, match="pool_size=0"):
    RetrievalConfig(pool_size=0)
