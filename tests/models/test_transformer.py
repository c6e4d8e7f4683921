"""The decoder against the PyTorch implementation's own outputs, and its invariants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.conversion.phi import params_from_torch
from chexmix_jax.models.transformer import (
  Transformer,
  TransformerConfig,
  abstract_params,
  init_params,
)
from chexmix_jax.models.unstack import unstack_layers

SMALL = TransformerConfig(
    vocab_size=100, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4, dropout=0.0
)


def run(config, params, method, *args, **static):
  """What a method of the Transformer gives; to compile it whole takes less than piece by piece."""

  def function(params, *args):
    return getattr(Transformer(config, params), method)(*args, **static)

  return jax.jit(function)(params, *args)


@pytest.fixture(scope="module")
def small_params():
  return jax.jit(init_params, static_argnums=0)(SMALL, jax.random.key(0))


@pytest.fixture(scope="module")
def golden(shared):
  safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
  config = TransformerConfig(
      vocab_size=814, num_layers=4, width=64, num_heads=4, mlp_dim=256, rotary_dim=6
  )
  tensors = safetensors.load_file(shared / "parity/phi_small/model.safetensors")
  return config, params_from_torch(config, tensors), np.load(shared / "parity/phi_small.npz")


def test_published_shape_has_2_817_billion_parameters():
  leaves = jax.tree.leaves(abstract_params(TransformerConfig()))
  assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == 2_817_384_642


def test_logits_and_hidden_states_equal_the_pytorch_implementation(golden):
  config, params, data = golden
  model = functools.partial(run, config, params)
  np.testing.assert_allclose(model("__call__", data["ids"]), data["logits"], atol=1e-4, rtol=0)
  np.testing.assert_allclose(model("hidden_states", data["ids"]), data["hidden"], atol=1e-4, rtol=0)


def test_long_inputs_and_right_padding_equal_the_pytorch_implementation(golden):
  config, params, data = golden
  model = functools.partial(run, config, params)

  def compare(ours, expected):
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)

  compare(model("__call__", data["long_seq"])[0, -1], data["long_logits_last"])
  hidden_LBTD = model("hidden_states", data["long_seq"])
  compare(hidden_LBTD[:, 0, -1], data["long_last_hidden"])
  compare(hidden_LBTD[:, 0, 1:-1].mean(1), data["long_mean"])
  assert data["ext_seq"].shape == (1, 2048)
  compare(model("hidden_states", data["ext_seq"])[:, 0, -4:], data["ext_hidden_last4"])
  is_there_BT = data["pad_mask"].astype(bool)
  assert not is_there_BT.all()
  last_BTD = model("hidden_states", data["ids"])[-1]
  compare(last_BTD[is_there_BT], data["pad_last_hidden"][is_there_BT])


def test_unrolled_layers_equal_scanned_ones(small_params):
  tokens = jax.random.randint(jax.random.key(1), (2, 70), 0, 100)
  unrolled = dataclasses.replace(SMALL, scan_layers=False)
  np.testing.assert_allclose(
      run(SMALL, small_params, "__call__", tokens),
      run(unrolled, small_params, "__call__", tokens),
      atol=1e-5,
  )


def test_layers_apart_equal_stacked_ones(small_params):
  tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, 100)
  params = unstack_layers(jax.tree.map(jnp.copy, small_params))
  assert len(params["layers"]) == SMALL.num_layers
  for method in ("__call__", "hidden_states"):
    np.testing.assert_allclose(
        run(SMALL, params, method, tokens), run(SMALL, small_params, method, tokens), atol=1e-5
    )


def test_a_cache_on_a_cpu_is_in_float32(small_params):
  cache = Transformer(dataclasses.replace(SMALL, dtype="bfloat16"), small_params).init_cache(2, 8)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(cache)} == {"float32"}


def test_the_stacked_layers_are_used_up(small_params):
  stacked = jax.tree.map(jnp.copy, small_params)
  unstack_layers(stacked)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(stacked["layers"]))
  assert not stacked["lm_head"]["kernel"].is_deleted()


@pytest.mark.parametrize("rows", [1, 2])  # The cache of one row has another layout.
def test_cached_decoding_equals_the_full_forward_pass(small_params, rows):
  tokens = jax.random.randint(jax.random.key(1), (rows, 24), 0, 100)
  model = functools.partial(run, SMALL, small_params)
  full = model("__call__", tokens)
  logits, cache = model("prefill", tokens[:, :18], length=24)
  np.testing.assert_allclose(logits, full[:, :18], atol=1e-5)
  # Two tokens at a time; the cache takes those of an empty one just as well.
  other = Transformer(SMALL, small_params).init_cache(rows, 24)
  positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)
  logits, other = model("decode", tokens[:, :18], positions[:, :18], other)
  np.testing.assert_allclose(logits, full[:, :18], atol=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), other, cache)
  for start in range(18, 24, 2):
    new = slice(start, start + 2)
    logits, cache = model("decode", tokens[:, new], positions[:, new], cache)
    np.testing.assert_allclose(logits, full[:, new], atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_cache_widens_to_copies_of_its_rows(small_params, rows):
  tokens = jax.random.randint(jax.random.key(1), (rows, 24), 0, 100)
  model = Transformer(SMALL, small_params)
  _, cache = jax.jit(model.prefill, static_argnums=1)(tokens, 24)
  wide = model.widen_cache(cache, 3, 6)
  for kv_BHSK, wide_BHSK in zip(jax.tree.leaves(cache), jax.tree.leaves(wide), strict=True):
    expected = np.repeat(np.reshape(kv_BHSK, (rows, *kv_BHSK.shape[-3:])), 3, axis=0)
    np.testing.assert_array_equal(wide_BHSK[:, :, :24], expected)
    assert wide_BHSK.shape[2] == 30 and not np.any(wide_BHSK[:, :, 24:])


def test_rows_whose_prompts_differ_in_length_share_the_slots_behind_them(small_params):
  tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, 100)
  model = functools.partial(run, SMALL, small_params)
  full = model("__call__", tokens)
  # Row 0 has a prompt of 20 tokens, row 1 one of 15 with 5 tokens of padding behind it.
  lengths = jnp.array([20, 15])
  prompt = jnp.where(jnp.arange(20) < lengths[:, None], tokens[:, :20], 7)
  _, cache = model("prefill", prompt, length=24)
  slots = jnp.arange(24)
  for step in range(4):
    positions = lengths[:, None] + step
    mask = (slots < lengths[:, None]) | ((slots >= 20) & (slots <= 20 + step))
    new = jnp.take_along_axis(tokens, positions, 1)
    logits, cache = model("decode", new, positions, cache, 20 + step, mask[:, None])
    expected = jnp.take_along_axis(full, positions[..., None], 1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_gradients_never_cross_packed_documents(small_params):
  tokens = jax.random.randint(jax.random.key(1), (1, 130), 0, 100)
  segments = jnp.array([[1] * 70 + [2] * 50 + [0] * 10])
  positions = jnp.array([[*range(70), *range(50), *range(10)]])

  def loss_of_second_document(embedding):
    params = {**small_params, "embed": {"embedding": embedding}}
    # Each position gets a row of its own, so the gradient tells the positions apart.
    logits = Transformer(dataclasses.replace(SMALL, vocab_size=130), params)(
        jnp.arange(130)[None], positions, segments
    )
    return jnp.sum(logits[0, 70:120] ** 2)

  embedding = small_params["embed"]["embedding"][tokens[0]]
  gradient = jax.jit(jax.grad(loss_of_second_document))(embedding)
  assert np.all(np.asarray(gradient[:70]) == 0) and np.all(np.asarray(gradient[120:]) == 0)
  assert np.all(np.abs(gradient[70:120]).max(-1) > 0)


def test_a_packed_document_gets_the_logits_it_gets_alone(small_params):
  tokens = jax.random.randint(jax.random.key(1), (1, 100), 0, 100)
  model = functools.partial(run, SMALL, small_params)
  segments = jnp.array([[1] * 40 + [2] * 60])
  positions = jnp.array([[*range(40), *range(60)]])
  packed = model("__call__", tokens, positions, segments)
  np.testing.assert_allclose(packed[:, 40:], model("__call__", tokens[:, 40:]), atol=1e-5)
  assert np.abs(packed[:, 40:] - model("__call__", tokens)[:, 40:]).max() > 1e-3


def test_dropout_acts_only_with_a_key(small_params):
  config = dataclasses.replace(SMALL, dropout=0.5)
  tokens = jax.random.randint(jax.random.key(1), (1, 10), 0, 100)
  model = functools.partial(run, config, small_params)
  without = model("__call__", tokens)
  np.testing.assert_array_equal(without, run(SMALL, small_params, "__call__", tokens))
  drop = jax.jit(lambda key: Transformer(config, small_params)(tokens, dropout_key=key))
  first, second = (drop(jax.random.key(k)) for k in (0, 1))
  assert np.abs(first - second).max() > 1e-3 and np.abs(first - without).max() > 1e-3


def test_qk_norm_makes_logits_invariant_to_the_scale_of_queries():
  config = dataclasses.replace(SMALL, qk_norm=True)
  params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (1, 10), 0, 100)
  scaled = jax.tree.map(lambda x: x, params)
  scaled["layers"]["attn"]["q"] = jax.tree.map(lambda x: 3 * x, params["layers"]["attn"]["q"])
  np.testing.assert_allclose(
      run(config, params, "__call__", tokens), run(config, scaled, "__call__", tokens), atol=1e-4
  )
