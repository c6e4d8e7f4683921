"""Every remat policy, scan and backend of the model gives the same loss and gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from chexmix_jax.models.transformer import TransformerConfig, init_params
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.step import cross_entropy_sums

VOCABULARY = Vocabulary.sentencepiece(59, 60)
MODEL = TransformerConfig(
    vocab_size=VOCABULARY.size, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4,
    dropout=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def loss_and_gradients():
  params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, VOCABULARY.size, (2, 65), np.int32)
  slots = np.broadcast_to(np.arange(64), (2, 64))
  batch = {
      "inputs": tokens[:, :-1],
      "targets": tokens[:, 1:],
      "positions": np.where(slots < 40, slots, slots - 40).astype(np.int32),
      "segment_ids": np.where(slots < 40, 1, 2).astype(np.int32),
      "weights": rng.random((2, 64), np.float32),
  }

  def run(**changes):
    config = dataclasses.replace(MODEL, **changes)
    gradient = jax.grad(
        lambda params: cross_entropy_sums(config, VOCABULARY, params, batch, jax.random.key(1)),
        has_aux=True,
    )
    compiled = jax.jit(gradient).lower(params).compile()
    return compiled(params), compiled.memory_analysis().temp_size_in_bytes

  return run


@pytest.fixture(scope="module")
def expected(loss_and_gradients):
  return loss_and_gradients()


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "projections"},
        {"remat": "attention"},
        {"remat": "full"},
        {"remat": "full", "scan_layers": False},
        {"remat": "attention", "attention": "splash"},
    ],
)
def test_how_it_is_computed_changes_nothing(loss_and_gradients, expected, changes):
  for ours, theirs in zip(
      jax.tree.leaves(loss_and_gradients(**changes)[0]), jax.tree.leaves(expected[0]), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_computed_again_is_not_kept(loss_and_gradients, expected):
  projections, full = (loss_and_gradients(remat=name)[1] for name in ("projections", "full"))
  assert full < projections < expected[1]
