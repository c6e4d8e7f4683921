"""What is hidden of a picture's grid of codes, and three ways to fill it in.

Shape suffixes: N pictures, T codes of a picture in raster order, V vocabulary.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chexmix_jax.data.masking import mask_codes
from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.parallel.batches import map_rows
from chexmix_jax.tokenizers.vocabulary import Vocabulary

_ROUNDS = 8  # Of the iterative way, as Chang et al. 2022 have them.


def fill_codes(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    codes: np.ndarray,
    hidden: np.ndarray,
    method: str,
    batch_size: int,
    description: str = "",
) -> dict[str, np.ndarray]:
  """The most likely codes in place of the hidden ones: `codes`, `log_prob`, both (N, T).

  The model reads `boi · codes`; its output at the place before a code predicts the code, and never
  sees what lies after it. `method` is one of METHODS:

    sequential   in raster order, and what was filled in is read as if it were seen (as in stage 1)
    one_pass     hidden codes are the mask token, and all are predicted at once (as in stage 2)
    iterative    so too, but only the most certain are kept and read as if they were seen, and the
                 others predicted again: 8 rounds, the share still open falling as a quarter of a
                 cosine (MaskGIT, Chang et al. 2022)

  `codes` are the true ones, int (N, T), which are not read where `hidden`, bool (N, T), is set;
  `log_prob` is theirs, in nats, of the model's distribution over codes when a cell was filled in.
  """
  function = jax.tree_util.Partial(_FILLS[method](config, vocabulary), params)
  return map_rows(function, {"codes": codes, "hidden": hidden}, batch_size, description)


def draw_mask(
    shape: str, ratio: float, grid: tuple[int, int], seed: int, number: int
) -> np.ndarray:
  """Which cells of picture `number` are hidden, bool (h·w,) in raster order.

  `shape` is one of MASK_SHAPES:

    random   round(ratio · h · w) cells by lot
    top      round(ratio · h) rows, from the first on
    bottom   the same, from the last on
    block    one rectangle, with the same chance anywhere that it fits. Its height is 1/2 to 2 times
             its width as far as whole cells and the grid's sides allow, its area is that of
             ratio · h · w cells but for half a row or half a column of the rectangle
    lungs    round(ratio · n) by lot of the n cells where lungs usually lie, all at a ratio of 1

  Lungs are a template and no segmentation: the same two ellipses in every picture, at 14 to 46 and
  54 to 86 % of its width and 11 to 77 % of its height, and the cells whose centres lie inside. They
  fit a frontal radiograph that is upright and fills the picture; neither the picture nor its
  anatomy is looked at.

  The mask depends on the arguments alone. Raises UserError where it hides none or all, or the
  shape is unknown.
  """
  if shape not in _MASKS:
    raise UserError(f"{shape!r} is no shape of a mask; use one of {', '.join(MASK_SHAPES)}.")
  if not 0 < ratio <= 1:
    raise UserError(f"The ratio {ratio} of a mask must be more than 0 and at most 1.")
  rng = np.random.default_rng([seed, number, round(ratio * 1000)])
  hidden = _MASKS[shape](rng, ratio, grid)
  if not 0 < hidden.sum() < hidden.size:
    height, width = grid
    raise UserError(
        f"A {shape} mask of {ratio} hides none or all of {height} x {width} codes; take another"
        " ratio."
    )
  return hidden


def _hide_random(rng: np.random.Generator, ratio: float, grid: tuple[int, int]) -> np.ndarray:
  return mask_codes(rng, np.arange(grid[0] * grid[1]), ratio)


def _hide_top(rng: np.random.Generator, ratio: float, grid: tuple[int, int]) -> np.ndarray:
  height, width = grid
  return np.repeat(np.arange(height) < int(ratio * height + 0.5), width)


def _hide_bottom(rng: np.random.Generator, ratio: float, grid: tuple[int, int]) -> np.ndarray:
  return _hide_top(rng, ratio, grid)[::-1]


def _hide_block(rng: np.random.Generator, ratio: float, grid: tuple[int, int]) -> np.ndarray:
  height, width = grid
  area = ratio * height * width
  rows_by_columns = 2 ** rng.uniform(-1, 1)
  # No fewer rows than leave the columns room in the grid.
  side = np.clip(math.sqrt(area * rows_by_columns), area / width, height)
  rows = max(1, int(side + 0.5))
  columns = min(width, int(area / rows + 0.5))
  top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
  hidden = np.zeros(grid, bool)
  hidden[top : top + rows, left : left + columns] = True
  return hidden.reshape(-1)


def _hide_lungs(rng: np.random.Generator, ratio: float, grid: tuple[int, int]) -> np.ndarray:
  y, x = ((np.arange(side) + 0.5) / side for side in grid)
  # Both ellipses at once: they are mirror images about the middle of the width.
  across, down = (np.abs(x - 0.5) - 0.2) / 0.16, (y[:, None] - 0.44) / 0.33
  hidden = (across**2 + down**2 <= 1).reshape(-1)
  lungs = np.flatnonzero(hidden)
  hidden[lungs] = mask_codes(rng, lungs, ratio)
  return hidden


_MASKS = {
    "random": _hide_random,
    "top": _hide_top,
    "bottom": _hide_bottom,
    "block": _hide_block,
    "lungs": _hide_lungs,
}

MASK_SHAPES = tuple(_MASKS)
"""What draw_mask can hide."""


@functools.cache
def _sequential(config: TransformerConfig, vocabulary: Vocabulary) -> Callable[[Params, Any], Any]:
  def function(params, rows):
    model = Transformer(config, params)
    count, length = rows["codes"].shape

    def extend(state, cell):
      last_N, cache = state
      position, codes_N, hidden_N = cell
      positions_N1 = jnp.full((count, 1), position)
      logits_N1V, cache = model.decode(last_N[:, None], positions_N1, cache)
      best_N, _, log_prob_N = _predict(vocabulary, logits_N1V[:, 0], codes_N)
      filled_N = jnp.where(hidden_N, best_N, codes_N)
      return (vocabulary.codes_to_ids(filled_N), cache), (filled_N, log_prob_N)

    start = (jnp.full(count, vocabulary.boi, jnp.int32), model.init_cache(count, length))
    cells = (jnp.arange(length), rows["codes"].T, rows["hidden"].T)
    _, (filled_TN, log_prob_TN) = jax.lax.scan(extend, start, cells)
    return {"codes": filled_TN.T, "log_prob": log_prob_TN.T}

  return function


@functools.cache
def _one_pass(config: TransformerConfig, vocabulary: Vocabulary) -> Callable[[Params, Any], Any]:
  def function(params, rows):
    best_NT, _, log_prob_NT = _predict_all(
        Transformer(config, params), vocabulary, rows["codes"], rows["hidden"], rows["codes"]
    )
    codes_NT = jnp.where(rows["hidden"], best_NT, rows["codes"])
    return {"codes": codes_NT, "log_prob": log_prob_NT}

  return function


@functools.cache
def _iterative(config: TransformerConfig, vocabulary: Vocabulary) -> Callable[[Params, Any], Any]:
  def function(params, rows):
    model = Transformer(config, params)
    hidden_NT = rows["hidden"]
    counts_N1 = hidden_NT.sum(axis=1, keepdims=True)

    def refine(state, left):
      codes_NT, open_NT, kept_NT = state
      best_NT, certainty_NT, log_prob_NT = _predict_all(
          model, vocabulary, codes_NT, open_NT, rows["codes"]
      )
      # The least certain come first and stay open.
      ranks_NT = jnp.argsort(jnp.argsort(jnp.where(open_NT, certainty_NT, jnp.inf), axis=1), axis=1)
      still_NT = open_NT & (ranks_NT < jnp.floor(counts_N1 * left))
      codes_NT = jnp.where(open_NT & ~still_NT, best_NT, codes_NT)
      kept_NT = jnp.where(hidden_NT & ~open_NT, kept_NT, log_prob_NT)
      return (codes_NT, still_NT, kept_NT), None

    shares = [math.cos(math.pi / 2 * step / _ROUNDS) for step in range(1, _ROUNDS)] + [0.0]
    start = (rows["codes"], hidden_NT, jnp.zeros(hidden_NT.shape))
    (codes_NT, _, log_prob_NT), _ = jax.lax.scan(refine, start, jnp.array(shares))
    return {"codes": codes_NT, "log_prob": log_prob_NT}

  return function


_FILLS = {"sequential": _sequential, "one_pass": _one_pass, "iterative": _iterative}

METHODS = tuple(_FILLS)
"""The ways to fill in."""


def _predict_all(model: Transformer, vocabulary: Vocabulary, codes_NT, hidden_NT, true_NT):
  """_predict of every cell, where hidden codes are read as the mask token."""
  ids_NT = jnp.where(hidden_NT, vocabulary.mask, vocabulary.codes_to_ids(codes_NT))
  inputs_NT = jnp.pad(ids_NT[:, :-1], ((0, 0), (1, 0)), constant_values=vocabulary.boi)
  return _predict(vocabulary, model(inputs_NT), true_NT)


def _predict(
    vocabulary: Vocabulary, logits: jax.Array, true: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """From logits (..., V): the best code, its log-probability, and that of the true code (...)."""
  first = vocabulary.image_offset
  log_probs = jax.nn.log_softmax(logits[..., first : first + vocabulary.num_codes], axis=-1)
  best = jnp.argmax(log_probs, axis=-1).astype(true.dtype)
  true_log_prob = jnp.take_along_axis(log_probs, true[..., None], axis=-1)[..., 0]
  return best, jnp.max(log_probs, axis=-1), true_log_prob
