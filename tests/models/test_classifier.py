import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.models.classifier import ClassifierConfig, picture_means
from chexmix_jax.models.transformer import Transformer, TransformerConfig, init_params
from chexmix_jax.models.unstack import unstack_layers

FINDINGS = ("a", "b", "c")
PLAIN = TransformerConfig(
    vocab_size=50, num_layers=3, width=16, num_heads=2, mlp_dim=32, rotary_dim=4, dropout=0.0
)
TOKENS = np.random.default_rng(0).integers(0, 50, (2, 12))
POSITIONS = np.tile(np.r_[np.arange(5), np.arange(7)], (2, 1))
SEGMENTS = np.tile(np.repeat([1, 2], [5, 7]), (2, 1))
IS_IMAGE = np.tile(np.arange(12) % 5 > 0, (2, 1))


def with_layer(layer):
  return dataclasses.replace(PLAIN, classifier=ClassifierConfig(FINDINGS, layer))


@pytest.fixture(scope="module")
def params():
  params = jax.jit(init_params, static_argnums=0)(with_layer(-1), jax.random.key(0))
  rng = np.random.default_rng(1)
  drawn = jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params["classifier"]
  )
  return {**params, "classifier": drawn}


def classify(config, params):
  def function(params):
    model = Transformer(config, params)
    return model.classify(TOKENS, IS_IMAGE, POSITIONS, SEGMENTS, 3)

  return jax.jit(function)(params)


def expected(params, layer):
  """What is standardised and mapped, of means that numpy takes of the model's own hidden states."""

  def hidden_states(params):
    return Transformer(PLAIN, params).hidden_states(TOKENS, POSITIONS, SEGMENTS)

  plain = {name: value for name, value in params.items() if name != "classifier"}
  hidden_BTD = np.asarray(jax.jit(hidden_states)(plain)[layer], np.float64)
  given, linear = params["classifier"], params["classifier"]["linear"]
  rows = []
  for b in range(2):
    for segment in (1, 2, 3):
      chosen = (SEGMENTS[b] == segment) & IS_IMAGE[b]
      mean_D = hidden_BTD[b][chosen].mean(0) if chosen.any() else np.zeros(16)
      rows.append((mean_D - given["mean"]) * given["scale"] @ linear["kernel"] + linear["bias"])
  return np.reshape(rows, (2, 3, 3))


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_it_reads_the_mean_hidden_state_of_its_layer(params, layer):
  found = classify(with_layer(layer), params)
  np.testing.assert_allclose(found, expected(params, layer), atol=2e-5, rtol=0)
  apart = classify(with_layer(layer), unstack_layers(jax.tree.map(jnp.array, params)))
  np.testing.assert_allclose(apart, found, atol=1e-5, rtol=0)


def test_layers_behind_its_own_have_no_part(params):
  def total(params):
    model = Transformer(with_layer(1), params)
    return model.classify(TOKENS, IS_IMAGE, POSITIONS, SEGMENTS, 3).sum()

  gradients = jax.jit(jax.grad(total))(params)
  norms_L = jnp.abs(gradients["layers"]["mlp"]["up"]["kernel"]).sum((1, 2))
  assert norms_L[0] > 0 and not norms_L[1:].any()


def test_a_document_without_a_picture_has_the_mean_zero():
  means = jax.jit(functools.partial(picture_means, num_segments=2))(
      jnp.ones((1, 4, 3)), jnp.zeros((1, 4), bool), jnp.ones((1, 4), int)
  )
  np.testing.assert_array_equal(means, np.zeros((1, 2, 3)))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: ClassifierConfig(()), "findings"),
        (lambda: ClassifierConfig(("a", "a")), "each once"),
        (lambda: ClassifierConfig(("a",), -2), "layer=-2"),
        (lambda: with_layer(4), "beyond the 3 layers"),
    ],
)
def test_what_cannot_be_is_said(make, sentence):
  with pytest.raises(UserError, match=sentence):
    make()
