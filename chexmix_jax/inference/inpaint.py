"""Filling in hidden codes of a picture's grid, in three ways.

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

MASK_SHAPES = ("random", "top", "bottom")
"""What draw_mask can hide."""

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

  `random` hides round(ratio · h · w) cells, `top` and `bottom` round(ratio · h) rows. Raises
  UserError where that is none or all.
  """
  height, width = grid
  if shape == "random":
    rng = np.random.default_rng([seed, number, round(ratio * 1000)])
    hidden = mask_codes(rng, np.arange(height * width), ratio)
  else:
    row = np.arange(height) if shape == "top" else np.arange(height)[::-1]
    hidden = np.repeat(row < int(ratio * height + 0.5), width)
  if not 0 < hidden.sum() < hidden.size:
    raise UserError(
        f"A {shape} mask of {ratio} hides none or all of {height} x {width} codes; take another"
        " ratio."
    )
  return hidden


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
