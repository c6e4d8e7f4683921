"""Names and layouts of PhiForCausalLM: everything is taken once, and what is wrong is named."""

import jax
import numpy as np
import pytest

from chexmix_jax.conversion.phi import params_from_torch
from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import TransformerConfig, abstract_params

WIDTH, HIDDEN, VOCAB = 8, 20, 11


def _config(qk_norm=False):
  return TransformerConfig(
      vocab_size=VOCAB, num_layers=2, width=WIDTH, num_heads=2, mlp_dim=HIDDEN, rotary_dim=2,
      qk_norm=qk_norm,
  )  # fmt: skip


def _tensors(qk_norm=False):
  shapes = {"model.embed_tokens": (VOCAB, WIDTH), "lm_head": (VOCAB, WIDTH)}
  shapes["model.final_layernorm"] = (WIDTH,)
  for i in range(2):
    layer = f"model.layers.{i}"
    shapes[f"{layer}.input_layernorm"] = (WIDTH,)
    for part in ("q_proj", "k_proj", "v_proj", "dense"):
      shapes[f"{layer}.self_attn.{part}"] = (WIDTH, WIDTH)
    for part in ("q_layernorm", "k_layernorm") if qk_norm else ():
      shapes[f"{layer}.self_attn.{part}"] = (WIDTH // 2,)
    shapes[f"{layer}.mlp.fc1"] = (HIDDEN, WIDTH)
    shapes[f"{layer}.mlp.fc2"] = (WIDTH, HIDDEN)
  rng = np.random.default_rng(0)
  tensors = {}
  for name, shape in shapes.items():
    tensors[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
    tensors[f"{name}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
  del tensors["model.embed_tokens.bias"]
  return tensors


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_tree_is_that_of_our_model(qk_norm):
  params = params_from_torch(_config(qk_norm), _tensors(qk_norm))
  shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(_config(qk_norm)))
  assert jax.tree.map(lambda leaf: leaf.shape, params) == shapes


def test_linear_weights_turn_and_heads_are_split():
  tensors = _tensors()
  params = params_from_torch(_config(), tensors)
  theirs = tensors["model.layers.1.self_attn.q_proj.weight"]
  # Output feature 5 is head 1, dimension 1.
  assert params["layers"]["attn"]["q"]["kernel"][1, 3, 1, 1] == theirs[5, 3]
  dense = tensors["model.layers.0.self_attn.dense.weight"]
  assert params["layers"]["attn"]["out"]["kernel"][0, 1, 1, 3] == dense[3, 5]
  fc1 = tensors["model.layers.1.mlp.fc1.weight"]
  np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][1], fc1.T)


def test_missing_and_unexpected_tensors_are_named():
  tensors = _tensors()
  del tensors["model.layers.1.mlp.fc2.bias"]
  with pytest.raises(UserError, match=r"lacks model\.layers\.1\.mlp\.fc2\.bias"):
    params_from_torch(_config(), tensors)
  with pytest.raises(UserError, match=r"unexpected tensors .*q_layernorm"):
    params_from_torch(_config(), _tensors(qk_norm=True))
