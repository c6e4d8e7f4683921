"""How surprising each image token is to the model.

Shape suffixes as in models/transformer.py; here T is the image's codes in raster order, G windows
of W tokens each, X all their tokens.
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

# Of all windows of a pass: enough to read the parameters a few times only.
_TOKENS_A_PASS = 512


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
    span = min(radius * (width + 1), length)
    group = max(1, min(_TOKENS_A_PASS // span, length))
    logits_BTV, cache = model.prefill(inputs_BT, length + group * span)
    causal_BT = -_log_prob(logits_BTV, ids_BT)

    # The output at a position predicts the code of that number, and its input is the code before.
    # What a neighbourhood hides begins at most `span` positions back: from there to the token goes
    # a window of its own, over the cache of all that stands before it. Several windows share a
    # pass, each in slots behind the image's.
    def step(cache, cells_G):
      starts_G = jnp.maximum(cells_G + 1 - span, 0)
      positions_GW = starts_G[:, None] + jnp.arange(span)
      before_GW = positions_GW - 1
      near_GW = jnp.abs(before_GW % width - cells_G[:, None] % width) <= radius
      near_GW &= before_GW // width >= cells_G[:, None] // width - radius
      near_GW &= (before_GW // width <= cells_G[:, None] // width + radius) & (before_GW >= 0)
      windows_BX = jnp.where(near_GW, vocabulary.mask, inputs_BT[:, positions_GW])
      windows_BX = windows_BX.reshape(len(inputs_BT), -1)
      positions_BX = jnp.broadcast_to(positions_GW.reshape(-1), windows_BX.shape)
      image_GWT = jnp.broadcast_to(
          jnp.arange(length) < starts_G[:, None, None], (group, span, length)
      )
      own_XX = jnp.kron(jnp.eye(group), jnp.tri(span)) > 0
      mask_XS = jnp.concatenate([image_GWT.reshape(-1, length), own_XX], axis=1)
      mask_BXS = jnp.broadcast_to(mask_XS, (len(inputs_BT), *mask_XS.shape))
      logits_BXV, cache = model.decode(windows_BX, positions_BX, cache, length, mask_BXS)
      last_G = jnp.arange(group) * span + cells_G - starts_G
      return cache, -_log_prob(logits_BXV[:, last_G], ids_BT[:, cells_G])

    cells = jnp.minimum(jnp.arange(-(-length // group) * group), length - 1)
    _, masked_NBG = jax.lax.scan(step, cache, cells.reshape(-1, group))
    masked_BT = jnp.moveaxis(masked_NBG, 1, 0).reshape(len(ids_BT), -1)[:, :length]
    return {"causal": causal_BT, "masked": masked_BT}

  return function


def _log_prob(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """log p (...) of ids (...) by logits (..., V)."""
  taken = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  return taken - jax.nn.logsumexp(logits, axis=-1)
