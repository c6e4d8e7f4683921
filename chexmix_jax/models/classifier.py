"""A classifier on the hidden states of pictures, which is trained with the model or its adapter.

Shape suffixes: B batch, T tokens, S documents of a row, D width, F findings.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from chexmix_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
  """What it says, and of what.

  Attributes:
    findings: names of its F outputs, of labels.CHEXPERT_14 or of a table of labels.
    layer: whose hidden states it reads, from 0 (the embeddings) on; -1 is the last.
  """

  findings: tuple[str, ...]
  layer: int = -1

  def __post_init__(self):
    if not self.findings or len(set(self.findings)) < len(self.findings):
      raise UserError(f"classifier.findings={self.findings} must be names, each once.")
    if self.layer < -1:
      raise UserError(f"classifier.layer={self.layer} must be 0 or more, or -1 for the last.")


class Classifier(nnx.Module):
  """Log-odds (..., F) of the mean hidden states (..., D) of pictures: standardised, then linear."""

  def __init__(self, config: ClassifierConfig, width: int, *, rngs: nnx.Rngs):
    # Means of pictures differ little beside what all of them share: see training/linear_start.py.
    self.mean = nnx.Param(jnp.zeros(width))
    self.scale = nnx.Param(jnp.ones(width))
    self.linear = nnx.Linear(
        width, len(config.findings), kernel_init=nnx.initializers.zeros_init(), rngs=rngs
    )

  def __call__(self, mean_XD: jax.Array) -> jax.Array:
    return self.linear((mean_XD - self.mean[...]) * self.scale[...])


def picture_means(
    hidden_BTD: jax.Array, is_image_BT: jax.Array, segment_ids_BT: jax.Array, num_segments: int
) -> jax.Array:
  """float32 (B, S, D): the mean over the image positions of each document of a row; 0 of none."""
  segments_S1 = 1 + jnp.arange(num_segments)[:, None]
  pooled_BST = (segment_ids_BT[:, None] == segments_S1) & is_image_BT[:, None]
  sums_BSD = jnp.einsum(
      "BST,BTD->BSD", pooled_BST.astype(jnp.float32), hidden_BTD.astype(jnp.float32),
      precision="highest",
  )  # fmt: skip
  return sums_BSD / jnp.maximum(pooled_BST.sum(-1, keepdims=True), 1)
