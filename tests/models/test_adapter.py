"""Low-rank additions, against their formulas and the model that they make."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexmix_jax.errors import UserError
from chexmix_jax.models.adapter import AdapterConfig, Projection, merge_adapter, take_rows
from chexmix_jax.models.transformer import Transformer, TransformerConfig, abstract_params

CONFIG = TransformerConfig(
    vocab_size=40, num_layers=2, width=16, num_heads=2, mlp_dim=32, rotary_dim=4, dropout=0.0
)
IDS = np.random.default_rng(0).integers(0, 40, (2, 9))


def with_adapter(**settings):
  return dataclasses.replace(CONFIG, adapter=AdapterConfig(**{"rank": 3, **settings}))


def random_like(shapes, scale=0.3):
  rng = np.random.default_rng(1)
  return jax.tree.map(
      lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes
  )


def projection(kind, dropout=0.0):
  adapter = AdapterConfig(kind=kind, rank=2, alpha=5.0, dropout=dropout)
  layer = Projection(
      "attn.out", (2, 3), (4,), jnp.dtype("float32"), adapter, rngs=nnx.Rngs(0)
  )
  graph, state = nnx.split(layer)
  return nnx.merge(graph, random_like(state)), adapter


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_formula(kind):
  layer, adapter = projection(kind)
  x = np.random.default_rng(2).normal(size=(5, 7, 2, 3)).astype(np.float32)
  kernel, bias, a, b = (
      np.asarray(leaf[...], np.float64).reshape(shape)
      for leaf, shape in (
          (layer.kernel, (6, 4)), (layer.bias, (4,)), (layer.lora_a, (6, 2)), (layer.lora_b, (2, 4))
      )
  )  # fmt: skip
  whole = kernel + adapter.alpha / adapter.rank * a @ b
  if kind == "dora":
    whole *= np.asarray(layer.magnitude[...]) / np.linalg.norm(whole, axis=0)
  np.testing.assert_allclose(layer(x), x.reshape(5, 7, 6) @ whole + bias, atol=1e-5)


def test_the_length_of_a_column_is_a_constant_of_the_gradient():
  layer, adapter = projection("dora")
  graph, state = nnx.split(layer)
  x = jnp.ones((1, 2, 3))

  def fixed(state, lengths):
    given = nnx.to_pure_dict(state)
    kernel = given["kernel"] + adapter.scale * jnp.tensordot(given["lora_a"], given["lora_b"], 1)
    return jnp.sum(jnp.tensordot(x, kernel, 2) * given["magnitude"] / lengths + given["bias"])

  given = nnx.to_pure_dict(state)
  kernel = given["kernel"] + adapter.scale * jnp.tensordot(given["lora_a"], given["lora_b"], 1)
  lengths = jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1)))
  found = jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(x)))(state)
  expected = jax.grad(fixed)(state, lengths)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_dropout_is_of_the_addition_alone():
  layer, _ = projection("lora", dropout=0.5)
  x = jnp.ones((1, 2, 3))
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = jax.vmap(lambda key: layer(x, key))(keys)
  np.testing.assert_allclose(drawn.mean(0), layer(x), atol=0.15)
  assert drawn.std(0).max() > 0.3
  layer.lora_b[...] = jnp.zeros_like(layer.lora_b[...])
  np.testing.assert_allclose(layer(x, keys[0]), layer(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_merged_model_is_the_same(kind):
  config = with_adapter(kind=kind, targets=("attn.*", "mlp.down"), rows=(30, 40))
  params = random_like(abstract_params(config))
  assert "lora_a" not in params["layers"]["mlp"]["up"]
  params["rows"] = random_like(take_rows(config.adapter, params), 1.0)
  merged = merge_adapter(config.adapter, params)
  assert jax.tree.structure(merged) == jax.tree.structure(abstract_params(CONFIG))
  found = Transformer(config, params)(IDS)
  np.testing.assert_allclose(found, Transformer(CONFIG, merged)(IDS), atol=2e-4)
  np.testing.assert_array_equal(merged["embed"]["embedding"][30:], params["rows"]["embedding"])
  np.testing.assert_array_equal(
      merged["embed"]["embedding"][:30], params["embed"]["embedding"][:30]
  )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "adapter.rank=0 must be 1"),
        ({"dropout": 1.0}, "adapter.dropout=1.0"),
        ({"targets": ("attn.*", "attn.key")}, "'attn.key', which matches nothing; the matrices"),
        ({"rows": (3,)}, "adapter.rows="),
        ({"rows": (30, 41)}, "beyond the 40 ids"),
    ],
)
def test_bad_settings(settings, message):
  with pytest.raises(UserError, match=message):
    with_adapter(**settings)


def test_a_rank_above_the_matrix_is_named():
  with pytest.raises(UserError, match=r"adapter.rank=17 is above the 16 of attn.q"):
    abstract_params(with_adapter(rank=17))
