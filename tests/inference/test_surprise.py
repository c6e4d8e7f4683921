"""Surprise of image tokens, against a forward pass for every token."""

import numpy as np
import pytest
import scipy.special

from chexmix_jax.errors import UserError
from chexmix_jax.inference import surprise as surprise_lib
from chexmix_jax.inference.surprise import image_surprise


@pytest.fixture(params=[512, 11], ids=["one pass", "several passes"])
def tokens_a_pass(request, monkeypatch):
  """Windows of all tokens in one pass, or two or three at a time, the last pass not full."""
  monkeypatch.setattr(surprise_lib, "_TOKENS_A_PASS", request.param)
  surprise_lib._surprise.cache_clear()
  yield
  surprise_lib._surprise.cache_clear()


def surprise(model, grids, radius):
  return image_surprise(model.config, model.vocabulary, model.params, grids, radius, 4)


@pytest.mark.usefixtures("tokens_a_pass")
@pytest.mark.parametrize(
    ("shape", "radius"), [((4, 4), 1), ((2, 8), 1), ((4, 4), 2), ((2, 8), 3), ((3, 5), 9)]
)
def test_every_token_is_scored_by_an_input_of_its_own(model, forward, codes, shape, radius):
  height, width = shape
  vocabulary = model.vocabulary
  grids = codes[:, : height * width].reshape(-1, height, width)[:2]
  found = surprise(model, grids, radius)
  assert found.causal.shape == found.masked.shape == grids.shape
  for n, grid in enumerate(grids):
    ids = vocabulary.codes_to_ids(grid)
    rows, columns = np.indices(shape)
    for y, x in np.ndindex(*shape):
      cell = y * width + x
      near = (abs(rows - y) <= radius) & (abs(columns - x) <= radius)
      for values, tokens in (
          (found.causal, ids), (found.masked, np.where(near, vocabulary.mask, ids))
      ):  # fmt: skip
        logits = forward([vocabulary.boi, *tokens.reshape(-1)[:-1]])[cell]
        expected = scipy.special.logsumexp(logits) - logits[ids[y, x]]
        np.testing.assert_allclose(values[n, y, x], expected, atol=2e-4)


def test_hiding_the_neighbourhood_changes_all_but_the_first_token(model, codes):
  found = surprise(model, codes.reshape(-1, 4, 4), 1)
  np.testing.assert_allclose(found.masked[:, 0, 0], found.causal[:, 0, 0], atol=1e-5)
  assert np.all(np.abs(found.masked - found.causal)[:, 1:] > 1e-6)


def test_a_radius_of_nothing_is_refused(model, codes):
  with pytest.raises(UserError, match="radius=0"):
    surprise(model, codes.reshape(-1, 4, 4), 0)
