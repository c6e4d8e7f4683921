"""The formula for operations against XLA's own count, and against the published size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.models import flops
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.models.classifier import ClassifierConfig
from chexmix_jax.models.transformer import Transformer, TransformerConfig, abstract_params
from chexmix_jax.parallel.hardware import CHIPS
from chexmix_jax.training.trainable import join, prepare_params

# Wide enough for what the formula leaves out to be small, and unrolled, as XLA counts the body of a
# loop once.
_CONFIG = TransformerConfig(
    vocab_size=512, num_layers=2, width=384, num_heads=4, mlp_dim=1536, rotary_dim=8, dropout=0.0,
    scan_layers=False,
)  # fmt: skip
_BATCH, _LENGTH = 2, 256


def _xla_flops_per_token(function):
  tokens = jax.ShapeDtypeStruct((_BATCH, _LENGTH), jnp.int32)
  compiled = jax.jit(function).lower(abstract_params(_CONFIG), tokens).compile()
  return compiled.cost_analysis()["flops"] / (_BATCH * _LENGTH)


def _logits(params, tokens):
  return Transformer(_CONFIG, params)(tokens)


def test_forward_flops_are_what_xla_counts():
  ours = flops.forward_flops_per_token(_CONFIG, _LENGTH)
  assert _xla_flops_per_token(_logits) == pytest.approx(ours, rel=0.03)


def test_training_flops_are_what_xla_counts():
  gradient = jax.grad(lambda params, tokens: _logits(params, tokens).sum())
  ours = flops.train_flops_per_token(_CONFIG, _LENGTH)
  assert _xla_flops_per_token(gradient) == pytest.approx(ours, rel=0.03)


def test_frozen_matrices_have_no_gradient_of_their_own():
  # Where the embedding is trained, the first layer has to say what it makes of its input.
  config = dataclasses.replace(_CONFIG, adapter=AdapterConfig(rank=8, train=("embed.*",)))
  trained, frozen = jax.eval_shape(lambda: prepare_params(config, jax.random.key(0)))

  def gradient(trained, frozen, tokens):
    def total(trained):
      return Transformer(config, join(trained, frozen))(tokens).sum()

    return jax.grad(total)(trained)

  tokens = jax.ShapeDtypeStruct((_BATCH, _LENGTH), jnp.int32)
  cost = jax.jit(gradient).lower(trained, frozen, tokens).compile().cost_analysis()
  ours = flops.train_flops_per_token(config, _LENGTH)
  assert cost["flops"] / (_BATCH * _LENGTH) == pytest.approx(ours, rel=0.03)
  whole = flops.train_flops_per_token(_CONFIG, _LENGTH)
  assert 0.65 * whole < ours < 0.75 * whole


def test_a_classifier_needs_the_layers_before_it():
  config = dataclasses.replace(_CONFIG, num_layers=4, classifier=ClassifierConfig(("a",), 2))
  ours = flops.forward_flops_per_token(config, _LENGTH)
  # Two layers, and no output.
  output = 2 * _CONFIG.width * _CONFIG.vocab_size
  assert ours == flops.forward_flops_per_token(_CONFIG, _LENGTH) - output


def test_the_published_model_has_no_embedding_in_what_multiplies():
  config = TransformerConfig()
  layer = 4 * 2560 * 2560 + 2 * 2560 * 10240
  assert flops.multiplying_parameters(config) == 32 * layer + 2560 * 58562
  attention = flops.train_flops_per_token(config, 2048) - flops.train_flops_per_token(config, 0)
  assert attention == 6 * 32 * 2560 * 2048


def test_recomputing_does_not_count():
  remat = TransformerConfig(remat=True)
  assert flops.train_flops_per_token(remat, 64) == flops.train_flops_per_token(
      TransformerConfig(), 64
  )


def test_the_context_of_a_row_with_one_document_is_its_length():
  positions = np.arange(7)[None]
  assert flops.packed_context(positions, np.ones((1, 7))) == 7


def test_the_context_of_packed_rows_is_the_documents_mean_length_by_token():
  positions = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]])
  segment_ids = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
  expected = (3 * 3 + 2 * 2 + 4 * 4) / 9
  assert flops.packed_context(positions, segment_ids) == pytest.approx(expected)


def test_a_chip_at_its_peak_is_used_whole():
  config, chip = TransformerConfig(), CHIPS["v5e"]
  rate = chip.flops / flops.train_flops_per_token(config, 2048)
  assert flops.utilization(config, 2048, rate, chip) == pytest.approx(1.0)
