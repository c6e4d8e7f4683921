"""Floating-point operations of the decoder by the usual formula, and the share of a chip's peak.

A product of n x k by k x m counts 2·n·k·m. Of a token, forward,

    2·N + 2·L·H·K·S,

N being the parameters that multiply it: those of all kernels, the output's too. The embedding is a
lookup, and biases, norms, rotation, softmax, GELU and dropout, which touch each number once, are
left out, as is a classifier. Attention costs 4·H·K a layer (q·k and weights·v) for each of the
tokens that are looked at, on average half of a context of S as it is causal. The backward pass has
two products for each of these, so training takes three times as much: 6·N + 6·L·H·K·S. What is
computed again to save memory never counts, nor does the optimizer.

Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) have the terms, Chowdhery et al. 2022 (PaLM,
arXiv 2204.02311, appendix B) the share of the peak; theirs is 12·L·H·K·S, as they count the whole
square. MaxText takes half of it, as here.

Packing: a token sees only its own document. Of packed rows S is the length of a token's document,
averaged over the tokens (`packed_context`), not that of the row.
"""

import functools
import math

import jax
import numpy as np

from chexmix_jax.models.transformer import TransformerConfig, abstract_params
from chexmix_jax.parallel.hardware import Chip
from chexmix_jax.parallel.sharding import parameter_name


def multiplying_parameters(config: TransformerConfig) -> int:
  """N of the formula: how many numbers the matrices of the layers and of the output hold."""
  return sum(_matrices(config).values())


def frozen_parameters(config: TransformerConfig) -> int:
  """How many of them have no gradient, where an adapter is trained."""
  adapter = config.adapter
  if adapter is None:
    return 0
  # The gradient of some rows of the output comes with that of all.
  whole = {"lm_head.kernel"} if adapter.rows else set()
  found = _matrices(config).items()
  return sum(size for name, size in found if name not in whole and not adapter.trains(name))


@functools.cache
def _matrices(config: TransformerConfig) -> dict[str, int]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(abstract_params(config))
  sizes = {
      parameter_name(path): math.prod(leaf.shape)
      for path, leaf in leaves
      if path[-1].key in ("kernel", "lora_a", "lora_b")
  }
  if config.classifier is None:
    return sizes
  # Neither the output nor the layers behind the classifier's are computed.
  layers = _computed_layers(config)
  return {
      name: size * layers // config.num_layers if name.startswith("layers.") else size
      for name, size in sizes.items()
      if not name.startswith(("lm_head.", "classifier."))
  }


def _computed_layers(config: TransformerConfig) -> int:
  layers = config.num_layers
  return layers if config.classifier is None else config.classifier.layer % (layers + 1)


def forward_flops_per_token(config: TransformerConfig, context: float) -> float:
  """Of a token in a document of `context` tokens: 2·N + 2·L·H·K·S.

  To prefill S tokens takes S times this with a context of S. A single token after S cached ones
  sees all of them and not half, so decoding it takes this with a context of 2·S.
  """
  attention = 2 * _computed_layers(config) * config.width * context
  return 2 * multiplying_parameters(config) + attention


def train_flops_per_token(config: TransformerConfig, context: float) -> float:
  """Forward and backward, 6·N + 6·L·H·K·S: see the head of this file; of frozen matrices 4·N."""
  return 3 * forward_flops_per_token(config, context) - 2 * frozen_parameters(config)


def packed_context(positions_BT: np.ndarray, segment_ids_BT: np.ndarray) -> float:
  """S of packed rows: the mean length of the documents, each weighted by its tokens.

  A token at position p sees p + 1 tokens, of a document of S (S + 1) / 2 on average. Padding, which
  has segment 0, is no document.
  """
  return 1.0 + 2.0 * float(positions_BT[segment_ids_BT > 0].mean(dtype=np.float64))


def utilization(
    config: TransformerConfig, context: float, tokens_per_second_per_device: float, chip: Chip
) -> float:
  """MFU in training: train_flops_per_token · tokens/s of a device / the chip's peak in bfloat16.

  Tokens are those of documents: padding is computed as well, but is no use to anyone.
  """
  return train_flops_per_token(config, context) * tokens_per_second_per_device / chip.flops
