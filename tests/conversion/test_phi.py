"""Names and layouts of PhiForCausalLM: everything is taken once, and what is wrong is named."""

import jax
import ml_dtypes
import numpy as np
import pytest

from chexmix_jax.conversion.phi import (
    config_from_torch,
    config_to_torch,
    params_from_torch,
    params_to_torch,
    torch_shapes,
)
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


def test_what_is_wrong_is_named_all_at_once():
  tensors = _tensors(qk_norm=True)
  del tensors["model.layers.1.mlp.fc2.bias"]
  tensors["model.layers.0.mlp.fc1.weight"] = np.zeros((HIDDEN + 1, WIDTH), np.float32)
  with pytest.raises(UserError) as error:
    params_from_torch(_config(), tensors, "x.safetensors")
  message = str(error.value)
  assert message.startswith("x.safetensors does not fit")
  assert "missing: model.layers.1.mlp.fc2.bias" in message
  assert "unexpected: model.layers.0.self_attn.k_layernorm.bias" in message
  assert "fc1.weight (21, 8) instead of (20, 8)" in message


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_there_and_back_is_bit_identical(qk_norm, dtype):
  tensors = {name: tensor.astype(dtype) for name, tensor in _tensors(qk_norm).items()}
  params = params_from_torch(_config(qk_norm), tensors)
  back = {name: read() for name, _, read in params_to_torch(_config(qk_norm), params)}
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert back[name].dtype == dtype
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def _shapes(qk_norm=False):
  return {name: tensor.shape for name, tensor in _tensors(qk_norm).items()}


@pytest.mark.parametrize("rotary_dim, heads", [(2, 2), (32, 32), (10, 24), (6, 16)])
def test_config_json_there_and_back(rotary_dim, heads):
  config = TransformerConfig(
      vocab_size=VOCAB, num_layers=2, width=48 * heads, num_heads=heads, mlp_dim=HIDDEN,
      rotary_dim=rotary_dim, rope_base=18.5, norm_eps=1e-6, dropout=0.2,
  )  # fmt: skip
  settings = config_to_torch(config, eot=3, context=64)
  assert config_from_torch(torch_shapes(config), settings, "x") == config


def test_without_config_json_only_the_published_width_is_known():
  published = TransformerConfig()
  assert config_from_torch(torch_shapes(published), None, "x") == published
  with pytest.raises(UserError, match=r"8 wide.*config\.json"):
    config_from_torch(_shapes(), None, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"hidden_act": "relu"},
        {"num_key_value_heads": 1},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_what_this_model_does_not_do_is_refused(change):
  settings = config_to_torch(_config(), eot=3, context=64) | change
  with pytest.raises(UserError, match=r"config\.json"):
    config_from_torch(_shapes(), settings, "x")
