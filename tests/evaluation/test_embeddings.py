import jax
import numpy as np
import pytest

from chexmix_jax.data import tokens
from chexmix_jax.evaluation.embeddings import embed_images, embed_reports, pad_texts
from chexmix_jax.models.transformer import Transformer


@pytest.fixture(scope="module")
def hidden_states(context, params):
  """Of one row of tokens: (L+1, T, D)."""
  forward = jax.jit(Transformer(context.model, params).hidden_states)

  def run(tokens):
    padded = np.pad(np.array(tokens), (0, 30 - len(tokens)))
    return np.asarray(forward(padded[None]))[:, 0, : len(tokens)]

  return run


def test_the_embedding_of_an_image_is_the_mean_over_its_positions(context, params, hidden_states):
  vocabulary = context.vocabulary
  ids = vocabulary.codes_to_ids(tokens.load_tokens(context.tokens, "test").codes[:3])
  ids[1, 4:] = vocabulary.mask
  found = embed_images(context.model, vocabulary, params, ids, batch_size=2)
  assert found.shape == (3, context.model.num_layers + 1, context.model.width)
  for row, embedding in zip(ids, found, strict=True):
    hidden = hidden_states([vocabulary.boi, *row, vocabulary.eoi])
    np.testing.assert_allclose(embedding, hidden[:, 1:-1].mean(1), atol=1e-5)


def test_the_embedding_of_a_report_is_the_mean_over_its_text(context, params, hidden_states):
  texts = [np.array([5, 6, 7], np.int32), np.arange(21, dtype=np.int32) + 40]
  vocabulary = context.vocabulary
  found = embed_reports(context.model, vocabulary, params, texts, batch_size=2)
  for text, embedding in zip(texts, found, strict=True):
    hidden = hidden_states([vocabulary.eot, *text])
    np.testing.assert_allclose(embedding, hidden[:, 1:].mean(1), atol=1e-5)


def test_texts_are_padded_on_the_right(vocabulary):
  padded, is_text = pad_texts(vocabulary, [np.array([3, 4, 5]), np.array([], int), np.array([6])])
  assert padded.shape == is_text.shape and padded.dtype == np.int32
  assert [row[keep].tolist() for row, keep in zip(padded, is_text, strict=True)] == [
      [3, 4, 5], [], [6],
  ]  # fmt: skip
  assert set(padded[~is_text]) == {vocabulary.pad} and is_text[0, :3].all()
