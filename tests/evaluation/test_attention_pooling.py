import jax
import numpy as np
import pytest

from chexmix_jax.evaluation.attention_pooling import embed_by_attention, fit_queries
from chexmix_jax.inference.embeddings import embed_images, image_prompts
from chexmix_jax.models.transformer import Transformer


@pytest.fixture
def ids(context):
  codes = np.random.default_rng(0).integers(32, size=(40, 16))
  return context.vocabulary.codes_to_ids(codes)


def shared(context, params):
  return context.model, context.vocabulary, params


def test_queries_of_zeros_give_the_mean(context, params, ids):
  queries = np.zeros((context.model.num_layers + 1, context.model.width), np.float32)
  found = embed_by_attention(*shared(context, params), queries, ids, 8)
  np.testing.assert_allclose(found, embed_images(*shared(context, params), ids, 8), atol=2e-5)


def test_weights_are_those_of_the_formula(context, params, ids):
  shape = (context.model.num_layers + 1, context.model.width)
  queries = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  found = embed_by_attention(*shared(context, params), queries, ids[:3], 8)
  prompts = image_prompts(context.vocabulary, ids[:3])
  hidden = jax.device_get(Transformer(context.model, params).hidden_states(prompts))[:, :, 1:-1]
  hidden = hidden.astype(np.float64)
  normal = hidden / (np.sqrt((hidden**2).mean(-1, keepdims=True)) + 1e-6)
  scores = np.einsum("lbtd,ld->lbt", normal, queries) / np.sqrt(shape[1])
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  np.testing.assert_allclose(found, np.einsum("lbt,lbtd->bld", weights, hidden), atol=2e-4)


def test_what_tells_studies_apart_is_attended_to(context, params, ids):
  """One position says it all: its code, of two, among others at random."""
  positive = np.arange(len(ids)) % 2
  ids = ids.copy()
  ids[:, 5] = context.vocabulary.codes_to_ids(np.where(positive, 3, 7))
  targets = np.stack([positive, np.where(positive, np.nan, 0)], axis=1).astype(np.float32)
  args = (*shared(context, params), ids, targets[:, :1], 16, 0)
  queries = fit_queries(*args)
  assert np.isfinite(queries).all() and np.abs(queries).max() > 0.05
  np.testing.assert_array_equal(queries, fit_queries(*args))
  # A finding without a label moves nothing.
  unknown = np.full((len(ids), 1), np.nan, np.float32)
  more = fit_queries(*shared(context, params), ids, np.hstack([targets[:, :1], unknown]), 16, 0)
  assert np.isfinite(more).all()

  def distance(embedded):
    """Of the means of both kinds of studies, in spreads."""
    layer = embedded[:, 0]
    ones, zeros = layer[positive == 1], layer[positive == 0]
    return np.linalg.norm(ones.mean(0) - zeros.mean(0)) / np.sqrt(layer.var(0).sum())

  attended = embed_by_attention(*shared(context, params), queries, ids, 16)
  mean = embed_by_attention(*shared(context, params), np.zeros_like(queries), ids, 16)
  assert distance(attended) > 1.2 * distance(mean)
