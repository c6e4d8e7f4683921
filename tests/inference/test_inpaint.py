"""Masks, and the three ways to fill in hidden codes, against plain loops of forward passes."""

import math

import numpy as np
import pytest
import scipy.special

from chexmix_jax.errors import UserError
from chexmix_jax.inference.inpaint import METHODS, draw_mask, fill_codes


@pytest.fixture(scope="module")
def hidden():
  return np.stack([draw_mask("random", 0.5, (4, 4), 0, number) for number in range(5)])


@pytest.fixture(scope="module")
def filled(model, codes, hidden):
  return {
      method: fill_codes(model.config, model.vocabulary, model.params, codes, hidden, method, 4)
      for method in METHODS
  }


def log_probs(forward, vocabulary, inputs):
  """log P(code) at every position of one row of token ids."""
  first = vocabulary.image_offset
  logits = forward(inputs)[:, first : first + vocabulary.num_codes]
  return logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True)


def test_masks_hide_the_asked_share_and_stay_the_same():
  drawn = [draw_mask("random", 0.25, (8, 8), 3, number) for number in range(20)]
  assert {int(mask.sum()) for mask in drawn} == {16}
  assert len({mask.tobytes() for mask in drawn}) == 20
  np.testing.assert_array_equal(drawn[7], draw_mask("random", 0.25, (8, 8), 3, 7))
  assert np.any(drawn[7] != draw_mask("random", 0.25, (8, 8), 4, 7))
  top, bottom = (draw_mask(shape, 0.5, (4, 3), 0, 0).reshape(4, 3) for shape in ("top", "bottom"))
  np.testing.assert_array_equal(top, [[True] * 3] * 2 + [[False] * 3] * 2)
  np.testing.assert_array_equal(bottom, ~top)
  with pytest.raises(UserError, match=r"top mask of 0\.1 hides none or all of 4 x 4 codes"):
    draw_mask("top", 0.1, (4, 4), 0, 0)


def test_one_pass_predicts_every_hidden_code_from_mask_tokens(
    model, forward, codes, hidden, filled
):
  vocabulary = model.vocabulary
  for i, (row, mask) in enumerate(zip(codes, hidden, strict=True)):
    ids = np.where(mask, vocabulary.mask, vocabulary.codes_to_ids(row))
    found = log_probs(forward, vocabulary, [vocabulary.boi, *ids[:-1]])
    expected = np.where(mask, found.argmax(1), row)
    np.testing.assert_array_equal(filled["one_pass"]["codes"][i], expected)
    np.testing.assert_allclose(
        filled["one_pass"]["log_prob"][i], found[np.arange(16), row], atol=1e-4
    )


def test_sequential_reads_what_it_filled_in(model, forward, codes, hidden, filled):
  vocabulary = model.vocabulary
  for i, (row, mask) in enumerate(zip(codes, hidden, strict=True)):
    inputs, expected, log_prob = [vocabulary.boi], [], []
    for code, is_hidden in zip(row, mask, strict=True):
      found = log_probs(forward, vocabulary, inputs)[-1]
      log_prob.append(found[code])
      expected.append(int(found.argmax()) if is_hidden else int(code))
      inputs.append(vocabulary.codes_to_ids(expected[-1]))
    np.testing.assert_array_equal(filled["sequential"]["codes"][i], expected)
    np.testing.assert_allclose(filled["sequential"]["log_prob"][i], log_prob, atol=1e-4)


def test_iterative_keeps_the_most_certain_of_each_round(model, forward, codes, hidden, filled):
  vocabulary = model.vocabulary
  for i, (row, mask) in enumerate(zip(codes, hidden, strict=True)):
    known, left, log_prob = row.copy(), mask.copy(), np.zeros(16)
    for number in range(1, 9):
      ids = np.where(left, vocabulary.mask, vocabulary.codes_to_ids(known))
      found = log_probs(forward, vocabulary, [vocabulary.boi, *ids[:-1]])
      stay = math.floor(mask.sum() * math.cos(math.pi / 2 * number / 8) + 1e-9)
      by_certainty = sorted(np.flatnonzero(left), key=lambda cell: found[cell].max())
      for cell in by_certainty[stay:]:
        known[cell], left[cell] = found[cell].argmax(), False
        log_prob[cell] = found[cell, row[cell]]
    assert not left.any()
    np.testing.assert_array_equal(filled["iterative"]["codes"][i], known)
    np.testing.assert_allclose(
        filled["iterative"]["log_prob"][i][mask], log_prob[mask], atol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_code_behind_a_mask_is_not_read(model, codes, hidden, filled, method):
  assert np.any(filled[method]["codes"] != codes)
  np.testing.assert_array_equal(filled[method]["codes"][~hidden], codes[~hidden])
  other = np.where(hidden, (codes + 1) % model.vocabulary.num_codes, codes)
  found = fill_codes(model.config, model.vocabulary, model.params, other, hidden, method, 4)
  np.testing.assert_array_equal(found["codes"], filled[method]["codes"])
