"""Names and layouts of Hugging Face's PhiForCausalLM beside ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import TransformerConfig

# Torch name of a layer's module -> ours. Torch keeps linear weights as (out, in).
_LAYER_MODULES = {
    "input_layernorm": "norm",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.dense": "attn.out",
    "self_attn.q_layernorm": "attn.q_norm",
    "self_attn.k_layernorm": "attn.k_norm",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
}


def params_from_torch(
    config: TransformerConfig, tensors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Our parameters, float32, from the tensors of a PhiForCausalLM by their torch names.

  Raises UserError that lists every missing and unexpected tensor.
  """
  heads = (config.num_heads, config.head_dim)
  modules = {k: v for k, v in _LAYER_MODULES.items() if config.qk_norm or "layernorm" not in k}
  modules["input_layernorm"] = "norm"
  names = [f"model.layers.{i}.{m}" for i in range(config.num_layers) for m in modules]
  names += ["model.final_layernorm", "lm_head"]
  expected = {f"{n}.{kind}" for n in names for kind in ("weight", "bias")}
  expected.add("model.embed_tokens.weight")
  if missing := sorted(expected - set(tensors)):
    raise UserError(f"The checkpoint lacks {', '.join(missing)}; is it of another shape?")
  if extra := sorted(set(tensors) - expected):
    raise UserError(f"The checkpoint has unexpected tensors {', '.join(extra)}.")

  def module(name: str, ours: str) -> dict[str, np.ndarray]:
    weight, bias = (np.asarray(tensors[f"{name}.{k}"], np.float32) for k in ("weight", "bias"))
    if ours.endswith("norm"):
      return {"scale": weight, "bias": bias}
    if ours in ("attn.q", "attn.k", "attn.v"):
      return {"kernel": weight.T.reshape(-1, *heads), "bias": bias.reshape(heads)}
    if ours == "attn.out":
      return {"kernel": weight.T.reshape(*heads, -1), "bias": bias}
    return {"kernel": weight.T, "bias": bias}

  layers: dict[str, Any] = {}
  for theirs, ours in modules.items():
    parts = [module(f"model.layers.{i}.{theirs}", ours) for i in range(config.num_layers)]
    group = layers
    *parents, leaf = ours.split(".")
    for parent in parents:
      group = group.setdefault(parent, {})
    group[leaf] = {kind: np.stack([part[kind] for part in parts]) for kind in parts[0]}
  return {
      "embed": {"embedding": np.asarray(tensors["model.embed_tokens.weight"], np.float32)},
      "layers": layers,
      "final_norm": module("model.final_layernorm", "norm"),
      "lm_head": module("lm_head", "lm_head"),
  }
