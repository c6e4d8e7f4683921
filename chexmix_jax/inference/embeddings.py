"""Frozen embeddings: the mean hidden state of every layer over an image or over a report.

Shape suffixes as in models/transformer.py: L layers, B batch, T tokens, D width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.parallel.batches import map_rows
from chexmix_jax.tokenizers.vocabulary import Vocabulary

Pooling = Literal["mean", "last"]

_REPORT_WIDTH = 16  # Reports are padded to a multiple of this, so that few widths are compiled.


def embed_images(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    image_ids: np.ndarray,
    batch_size: int,
    description: str = "",
    pooling: Pooling = "mean",
) -> np.ndarray:
  """float32 (N, L+1, D): means over the image positions of `boi · image · eoi`, or at `eoi`.

  `image_ids` are token ids (N, n); hidden ones are vocabulary.mask. The layers are those of
  Transformer.hidden_states.
  """
  prompts = image_prompts(vocabulary, image_ids)
  pooled = np.zeros(prompts.shape, np.float32)
  pooled[:, slice(1, -1) if pooling == "mean" else -1] = 1
  rows = {"tokens": prompts, "pooled": pooled}
  function = jax.tree_util.Partial(_pooled_hidden_states(config), params)
  return map_rows(function, rows, batch_size, description)


def embed_reports(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    texts: Sequence[np.ndarray],
    batch_size: int,
    description: str = "",
) -> np.ndarray:
  """float32 (N, L+1, D): means over the text positions of `eot · text`, N arrays of text ids."""
  tokens, is_text = pad_texts(vocabulary, texts)
  first = np.full((len(texts), 1), vocabulary.eot, np.int32)
  rows = {
      "tokens": np.concatenate([first, tokens], axis=1),
      "pooled": np.pad(is_text, ((0, 0), (1, 0))).astype(np.float32),
  }
  function = jax.tree_util.Partial(_pooled_hidden_states(config), params)
  return map_rows(function, rows, batch_size, description)


def image_prompts(vocabulary: Vocabulary, image_ids: np.ndarray) -> np.ndarray:
  """`boi · image · eoi`, int32 (N, n+2), of token ids (N, n)."""
  return np.pad(
      image_ids, ((0, 0), (1, 1)), constant_values=((0, 0), (vocabulary.boi, vocabulary.eoi))
  ).astype(np.int32)


def pad_texts(
    vocabulary: Vocabulary, texts: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """Text ids as rows padded on the right, int32 (N, T), and which of them are text, bool (N, T)."""
  lengths = np.array([len(text) for text in texts])
  width = -(-int(lengths.max()) // _REPORT_WIDTH) * _REPORT_WIDTH
  is_text = np.arange(width) < lengths[:, None]
  tokens = np.full(is_text.shape, vocabulary.pad, np.int32)
  tokens[is_text] = np.concatenate(texts)
  return tokens, is_text


@functools.cache
def _pooled_hidden_states(config: TransformerConfig) -> Callable:
  def function(params: Params, rows: dict[str, jax.Array]) -> jax.Array:
    def add_up(hidden_BTD):
      return jnp.einsum(
          "BTD,BT->BD", hidden_BTD.astype(jnp.float32), rows["pooled"], precision="highest"
      )

    sums_LBD = Transformer(config, params).hidden_states(rows["tokens"], keep=add_up)
    counts_B = jnp.maximum(rows["pooled"].sum(-1), 1.0)
    return (sums_LBD / counts_B[:, None]).swapaxes(0, 1)

  return function
