"""How surprising each image token is to the model.

Shape suffixes as in models/transformer.py; here T is the image's codes in raster order, W tokens of
a window.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.parallel.batches import map_rows
from chexmix_jax.tokenizers.vocabulary import Vocabulary


class Surprise(NamedTuple):
  """-log p of every image token in nats, of the model's whole distribution; float32 (N, h, w).

  Attributes:
    causal: given all that precedes it.
    masked: the same where the token's neighbourhood is the mask token in the input, so that the
      token cannot be told from the ones beside it.
  """

  causal: np.ndarray
  masked: np.ndarray


def image_surprise(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    codes: np.ndarray,
    radius: int,
    batch_size: int,
    description: str = "",
) -> Surprise:
  """Of image codes int (N, h, w).

  The neighbourhood of a token is the square of 2 · radius + 1 tokens a side around it; what comes
  after the token the model never sees. Every token has an input of its own, with its neighbourhood
  hidden and nothing else, so all of them cost about radius · (w + 1) forward passes.

  Raises UserError for a radius below 1.
  """
  if radius < 1:
    raise UserError(f"radius={radius} of a surprise map must be 1 or more.")
  rows = codes.reshape(len(codes), -1)
  function = jax.tree_util.Partial(_surprise(config, vocabulary, codes.shape[2], radius), params)
  found = map_rows(function, rows, batch_size, description)
  return Surprise(*(found[name].reshape(codes.shape) for name in Surprise._fields))


@functools.cache
def _surprise(
    config: TransformerConfig, vocabulary: Vocabulary, width: int, radius: int
) -> Callable[[Params, Any], Any]:
  def function(params, codes_BT):
    model = Transformer(config, params)
    length = codes_BT.shape[1]
    ids_BT = vocabulary.codes_to_ids(codes_BT)
    inputs_BT = jnp.pad(ids_BT[:, :-1], ((0, 0), (1, 0)), constant_values=vocabulary.boi)
    logits_BTV, cache = model.prefill(inputs_BT, length)
    causal_BT = -_log_prob(logits_BTV, ids_BT)

    # The output at a position predicts the code of that number, and its input is the code before.
    # What a neighbourhood hides begins at most `span` positions back; all before that is as it was
    # and lies in the cache. Windows go from the last to the first, so that one of them overwrites
    # only what no later one reads.
    span = min(radius * (width + 1), length)

    def step(cache, cell):
      start = jnp.maximum(cell + 1 - span, 0)
      positions_W = start + jnp.arange(span)
      before_W = positions_W - 1
      near_W = jnp.abs(before_W % width - cell % width) <= radius
      near_W &= (before_W // width >= cell // width - radius) & (before_W >= 0)
      window_BW = jax.lax.dynamic_slice_in_dim(inputs_BT, start, span, axis=1)
      window_BW = jnp.where(near_W, vocabulary.mask, window_BW)
      positions_BW = jnp.broadcast_to(positions_W, window_BW.shape)
      logits_BWV, cache = model.decode(window_BW, positions_BW, cache)
      logits_BV = jax.lax.dynamic_index_in_dim(logits_BWV, cell - start, 1, keepdims=False)
      return cache, -_log_prob(logits_BV, ids_BT[:, cell])

    _, masked_TB = jax.lax.scan(step, cache, jnp.arange(length), reverse=True)
    return {"causal": causal_BT, "masked": masked_TB.T}

  return function


def _log_prob(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """log p (...) of ids (...) by logits (..., V)."""
  taken = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  return taken - jax.nn.logsumexp(logits, axis=-1)
