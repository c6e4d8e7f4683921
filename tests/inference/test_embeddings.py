import jax
import numpy as np
import pytest

from chexmix_jax.inference.embeddings import embed_images, embed_reports, pad_texts
from chexmix_jax.models.transformer import Transformer


@pytest.fixture(scope="module")
def hidden_states(model):
  """Of one row of tokens: (L+1, T, D)."""
  forward = jax.jit(Transformer(model.config, model.params).hidden_states)

  def run(tokens):
    padded = np.pad(np.array(tokens), (0, 30 - len(tokens)))
    return np.asarray(forward(padded[None]))[:, 0, : len(tokens)]

  return run


def test_the_embedding_of_an_image_is_the_mean_over_its_positions(model, codes, hidden_states):
  vocabulary = model.vocabulary
  ids = vocabulary.codes_to_ids(codes[:3])
  ids[1, 4:] = vocabulary.mask
  found = embed_images(model.config, vocabulary, model.params, ids, batch_size=2)
  assert found.shape == (3, model.config.num_layers + 1, model.config.width)
  for row, embedding in zip(ids, found, strict=True):
    hidden = hidden_states([vocabulary.boi, *row, vocabulary.eoi])
    np.testing.assert_allclose(embedding, hidden[:, 1:-1].mean(1), atol=1e-5)


def test_the_embedding_of_a_report_is_the_mean_over_its_text(model, hidden_states):
  texts = [np.array([5, 6, 7], np.int32), np.arange(21, dtype=np.int32) + 40]
  vocabulary = model.vocabulary
  found = embed_reports(model.config, vocabulary, model.params, texts, batch_size=2)
  for text, embedding in zip(texts, found, strict=True):
    hidden = hidden_states([vocabulary.eot, *text])
    np.testing.assert_allclose(embedding, hidden[:, 1:].mean(1), atol=1e-5)


def test_texts_are_padded_on_the_right(model):
  pad = model.vocabulary.pad
  texts = [np.array([3, 4, 5]), np.array([], int), np.array([6])]
  padded, is_text = pad_texts(model.vocabulary, texts)
  assert padded.shape == is_text.shape and padded.dtype == np.int32
  assert [row[keep].tolist() for row, keep in zip(padded, is_text, strict=True)] == [
      [3, 4, 5], [], [6],
  ]  # fmt: skip
  assert set(padded[~is_text]) == {pad} and is_text[0, :3].all()


def test_embeddings_equal_the_pytorch_implementation(shared, golden_params):
  config, vocabulary, params = golden_params
  golden = np.load(shared / "parity/phi_small.npz")
  for sequences, expected in (
      (golden["emb_seq"], golden["emb_mean"]),
      (golden["long_seq"], golden["long_mean"][None]),
  ):
    assert np.all(sequences[:, [0, -1]] == [vocabulary.boi, vocabulary.eoi])
    found = embed_images(config, vocabulary, params, sequences[:, 1:-1], batch_size=8)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
