"""Masks, and the three ways to fill in hidden codes, against plain loops of forward passes."""

import math

import numpy as np
import pytest
import scipy.special

from chexmix_jax.errors import UserError
from chexmix_jax.inference.inpaint import MASK_SHAPES, METHODS, draw_mask, fill_codes
from chexmix_jax.phantom import make_study


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


def test_random_masks_are_those_that_checkpoints_were_compared_with():
  hidden = draw_mask("random", 0.5, (4, 4), 0, 3)
  np.testing.assert_array_equal(np.flatnonzero(hidden), [0, 2, 4, 6, 7, 9, 12, 13])


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (5, 9)])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.9])
def test_a_block_is_one_rectangle_of_about_the_asked_area(grid, ratio):
  drawn = [draw_mask("block", ratio, grid, 3, number).reshape(grid) for number in range(40)]
  for mask in drawn:
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    assert mask.sum() == rows * columns  # It is whole where it spans no more than it hides,
    assert np.ptp(np.flatnonzero(mask.any(1))) == rows - 1  # and in one piece.
    assert np.ptp(np.flatnonzero(mask.any(0))) == columns - 1
    assert abs(mask.sum() - ratio * mask.size) <= max(rows, columns) / 2
  assert len({mask.tobytes() for mask in drawn}) > 1
  np.testing.assert_array_equal(drawn[7], draw_mask("block", ratio, grid, 3, 7).reshape(grid))


def test_blocks_are_high_and_wide_and_everywhere():
  drawn = [draw_mask("block", 0.25, (32, 32), 0, n).reshape(32, 32) for n in range(300)]
  shapes = np.array([mask.any(1).sum() / mask.any(0).sum() for mask in drawn])
  assert 0.45 < shapes.min() < 0.6 and 1.7 < shapes.max() < 2.2
  share = np.mean(drawn, axis=0)
  # Every edge is met, and both halves as often as each other.
  assert min(share[edge].sum() for edge in (0, -1, np.s_[:, 0], np.s_[:, -1])) > 0
  assert 0.22 < share[:16].mean() < 0.28 and 0.22 < share[:, :16].mean() < 0.28


def test_lungs_are_two_lobes_of_which_a_share_is_hidden():
  lungs = draw_mask("lungs", 1.0, (16, 16), 0, 0)
  picture = lungs.reshape(16, 16)
  np.testing.assert_array_equal(picture, picture[:, ::-1])
  assert not picture[:, 7:9].any() and 0.3 < picture.mean() < 0.35
  np.testing.assert_array_equal(lungs, draw_mask("lungs", 1.0, (16, 16), 5, 9))
  halves = [draw_mask("lungs", 0.5, (16, 16), 0, number) for number in range(10)]
  assert {int(half.sum()) for half in halves} == {int(lungs.sum()) // 2}
  assert all(np.all(lungs[half]) for half in halves)
  assert len({half.tobytes() for half in halves}) == 10


def test_the_lungs_template_lies_on_dark_lungs_of_generated_pictures():
  hidden = draw_mask("lungs", 1.0, (32, 32), 0, 0).reshape(32, 32)
  for number in range(10):
    image = make_study(0, number, 32).image
    chest = image[4:24, 5:27]  # Within the body, above the diaphragm.
    assert np.median(chest[hidden[4:24, 5:27]]) < np.median(chest[~hidden[4:24, 5:27]])


@pytest.mark.parametrize("shape", MASK_SHAPES)
def test_masks_that_cannot_be_are_refused(shape):
  for ratio in (0.0, -0.5, 1.5, math.nan):
    with pytest.raises(UserError, match="must be more than 0 and at most 1"):
      draw_mask(shape, ratio, (4, 4), 0, 0)
  with pytest.raises(UserError, match="hides none or all of 4 x 4"):
    draw_mask(shape, 0.02, (4, 4), 0, 0)
  with pytest.raises(UserError, match="'heart' is no shape of a mask; use one of random, top"):
    draw_mask("heart", 0.5, (4, 4), 0, 0)


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
