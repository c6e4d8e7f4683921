"""What a trained classifier says of pictures.

Shape suffixes: N pictures, B of a batch, T tokens, F findings.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from chexmix_jax.inference.embeddings import image_prompts
from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.parallel.batches import map_rows
from chexmix_jax.tokenizers.vocabulary import Vocabulary


def log_odds(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    image_ids: np.ndarray,
    batch_size: int,
    description: str = "",
) -> np.ndarray:
  """float32 (N, F) of `config.classifier`, of token ids (N, n); hidden ones are vocabulary.mask."""
  function = jax.tree_util.Partial(_classify(config), params)
  return map_rows(function, image_prompts(vocabulary, image_ids), batch_size, description)


@functools.cache
def _classify(config: TransformerConfig) -> Callable:
  def function(params: Params, prompts_BT: jax.Array) -> jax.Array:
    # Between boi and eoi.
    is_image_BT = jnp.zeros(prompts_BT.shape, bool).at[:, 1:-1].set(True)
    segments_BT = jnp.ones_like(prompts_BT)
    model = Transformer(config, params)
    return model.classify(prompts_BT, is_image_BT, None, segments_BT, 1)[:, 0]

  return function
