import jax
import numpy as np

from chexmix_jax.data import tokens
from chexmix_jax.data.documents import Text, make_document
from chexmix_jax.evaluation.likelihood import log_likelihoods, own_log_likelihoods
from chexmix_jax.inference.reports import make_prompt
from chexmix_jax.models.transformer import Transformer


def test_likelihoods_equal_those_of_whole_documents(context, params):
  table = tokens.load_tokens(context.tokens, "test")
  vocabulary = context.vocabulary
  codes, texts = table.codes[:3], [*table.texts[:5], table.texts[0][:1]]
  assert len({-(-(len(text) + 1) // 16) for text in texts}) > 1  # More than one width.
  ids = vocabulary.codes_to_ids(codes)
  found = log_likelihoods(
      context.model, vocabulary, params, ids, texts, images_a_pass=2, reports_a_pass=2,
  )  # fmt: skip
  prompts = [make_prompt(vocabulary, {"image": one}) for one in ids]
  own = own_log_likelihoods(context.model, vocabulary, params, prompts, texts[:3], batch_size=2)
  np.testing.assert_allclose(own, np.diag(found), rtol=1e-5)
  forward = jax.jit(
      lambda ids: jax.nn.log_softmax(Transformer(context.model, params)(ids), axis=-1)
  )
  for i, code in enumerate(codes):
    for r, text in enumerate(texts):
      parts = [code, Text(text, np.zeros(0, np.int32))]
      document = make_document(parts, vocabulary, 1000)
      padded = np.pad(document.tokens, (0, 80 - len(document.tokens)))
      log_probs = np.asarray(forward(padded[None]))[0, : len(document.tokens)]
      chosen = log_probs[np.arange(len(document.targets)), document.targets]
      # From the start of text on: all of the text and the boi that ends it.
      expected = chosen[len(code) + 2 :].sum()
      np.testing.assert_allclose(found[i, r], expected, rtol=1e-5)


def test_hidden_pictures_give_another_likelihood(context, params):
  table, vocabulary = tokens.load_tokens(context.tokens, "test"), context.vocabulary
  ids = vocabulary.codes_to_ids(table.codes[:1])
  both = np.concatenate([ids, np.full_like(ids, vocabulary.mask)])
  scores = log_likelihoods(context.model, vocabulary, params, both, table.texts[:2], 1, 2)
  assert np.all(scores < 0) and np.all(np.abs(scores[0] - scores[1]) > 1e-2)
