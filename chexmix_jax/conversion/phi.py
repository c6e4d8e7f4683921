"""Names and layouts of Hugging Face's PhiForCausalLM beside ours."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from chexmix_jax.conversion.tensors import Shape, Source, check_shapes
from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import TransformerConfig, abstract_params
from chexmix_jax.parallel.sharding import parameter_name

END_MODULES = {
    "embed": "model.embed_tokens",
    "final_norm": "model.final_layernorm",
    "lm_head": "lm_head",
}
"""Torch's name of each module before and after the layers, by ours."""

LAYER_MODULES = {
    "norm": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.dense",
    "attn.q_norm": "self_attn.q_layernorm",
    "attn.k_norm": "self_attn.k_layernorm",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
"""The same within a layer."""


@dataclasses.dataclass(frozen=True)
class TorchTensor:
  """One tensor of torch's beside the part of ours that it fills.

  Attributes:
    layer: its place on the leading axis of our stacked parameter, or None.
    shape: torch's; linear weights, those of additions too, are (out, in) there.
    ours: shape of our part; linear kernels are (in, out), with heads apart.
  """

  parameter: str
  layer: int | None
  shape: Shape
  ours: Shape

  @property
  def is_turned(self) -> bool:
    return self.parameter.rsplit(".", 1)[-1] in ("kernel", "lora_a", "lora_b")

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    return (tensor.T if self.is_turned else tensor).reshape(self.ours)

  def to_torch(self, part: np.ndarray) -> np.ndarray:
    return part.reshape(self.shape[::-1]).T if self.is_turned else part.reshape(self.shape)


def torch_shapes(config: TransformerConfig) -> dict[str, Shape]:
  """Shapes of PhiForCausalLM's tensors by their names."""
  return {name: tensor.shape for name, tensor in torch_tensors(config).items()}


def params_from_torch(
    config: TransformerConfig, tensors: Mapping[str, np.ndarray], what: str = "The checkpoint"
) -> dict[str, Any]:
  """Our parameters, in the tensors' own precision, from those of a PhiForCausalLM by torch's names.

  One tensor is read at a time. Raises UserError that lists every missing, unexpected and misshapen
  tensor of `what`.
  """
  expected = torch_tensors(config)
  found = getattr(tensors, "shapes", None) or {k: v.shape for k, v in tensors.items()}
  check_shapes(what, {name: tensor.shape for name, tensor in expected.items()}, found)
  return gather(config.num_layers, expected, tensors)


def gather(
    num_layers: int, expected: Mapping[str, TorchTensor], tensors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Our parameters that the tensors fill, nested; those of the layers are stacked."""
  parameters: dict[str, np.ndarray] = {}
  for name, tensor in expected.items():
    part = tensor.to_ours(tensors[name])
    if tensor.layer is None:
      parameters[tensor.parameter] = np.ascontiguousarray(part)
      continue
    if tensor.parameter not in parameters:
      parameters[tensor.parameter] = np.empty((num_layers, *part.shape), part.dtype)
    parameters[tensor.parameter][tensor.layer] = part
  return _nested(parameters)


def params_to_torch(config: TransformerConfig, params: dict[str, Any]) -> list[Source]:
  """The tensors of a PhiForCausalLM, to be made one at a time, from our parameters."""
  return sources(torch_tensors(config), params)


def sources(tensors: Mapping[str, TorchTensor], params: dict[str, Any]) -> list[Source]:
  """The tensors, to be made one at a time, from our parameters."""
  flat = {
      parameter_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }

  def source(name: str, tensor: TorchTensor) -> Source:
    def read() -> np.ndarray:
      leaf = flat[tensor.parameter]
      return tensor.to_torch(np.asarray(leaf if tensor.layer is None else leaf[tensor.layer]))

    return name, tensor.shape, read

  return [source(name, tensor) for name, tensor in tensors.items()]


def config_from_torch(
    shapes: Mapping[str, Shape], settings: Mapping[str, Any] | None, where: str
) -> TransformerConfig:
  """The shape of a PhiForCausalLM from its tensors' shapes and its config.json.

  Without a config.json, what no shape tells (heads, rotary part, base, epsilon) is the published
  model's; UserError where the width is not. UserError too for a config.json that asks for what this
  architecture does not do.
  """
  published = TransformerConfig()
  try:
    layers = {int(n.split(".")[2]) for n in shapes if n.startswith("model.layers.")}
    vocab_size, width = shapes["model.embed_tokens.weight"]
    mlp_dim = shapes["model.layers.0.mlp.fc1.weight"][0]
  except (KeyError, ValueError) as error:
    raise UserError(f"{where} holds no PhiForCausalLM; name a checkpoint of that kind.") from error
  found = dataclasses.replace(
      published, vocab_size=vocab_size, num_layers=max(layers) + 1, mlp_dim=mlp_dim,
      qk_norm="model.layers.0.self_attn.q_layernorm.weight" in shapes,
  )  # fmt: skip
  if settings is None:
    if width != published.width:
      raise UserError(
          f"{where} is {width} wide, unlike the published model, and no config.json lies beside it"
          " to say how many heads that is; put it there."
      )
    return found
  _check_settings(settings, where)
  heads = settings["num_attention_heads"]
  rope = settings.get("rope_parameters") or settings  # transformers 5 keeps the rotary part there.
  return dataclasses.replace(
      found,
      width=width,
      num_heads=heads,
      rotary_dim=int(
          rope.get("partial_rotary_factor", settings.get("partial_rotary_factor", 0.5))
          * (width // heads)
      ),
      rope_base=float(rope.get("rope_theta", published.rope_base)),
      norm_eps=float(settings.get("layer_norm_eps", published.norm_eps)),
      dropout=float(settings.get("resid_pdrop", 0.0)),
  )


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
  ropes = [settings.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
  kinds = {rope.get("rope_type", rope.get("type", "default")) for rope in ropes}
  wanted = {
      "model_type": ("phi",),
      "hidden_act": ("gelu_new", "gelu_pytorch_tanh"),
      "tie_word_embeddings": (False, None),
      "num_key_value_heads": (settings.get("num_attention_heads"), None),
  }
  for key, allowed in wanted.items():
    if settings.get(key) not in allowed:
      raise UserError(
          f"{where}: config.json has {key}={settings.get(key)!r}, which this model does not do;"
          f" it does {allowed[0]!r}."
      )
  if kinds != {"default"}:
    raise UserError(f"{where}: config.json scales the rotary embedding, which is not done here.")


def config_to_torch(config: TransformerConfig, eot: int, context: int) -> dict[str, Any]:
  """config.json for PhiForCausalLM; `eot` begins and ends texts, `context` is in tokens."""
  rotary_factor = config.rotary_dim / config.head_dim
  if int(rotary_factor * config.head_dim) < config.rotary_dim:  # They cut the product off.
    rotary_factor = math.nextafter(rotary_factor, math.inf)
  return {
      "architectures": ["PhiForCausalLM"],
      "model_type": "phi",
      "vocab_size": config.vocab_size,
      "hidden_size": config.width,
      "intermediate_size": config.mlp_dim,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "num_key_value_heads": config.num_heads,
      "partial_rotary_factor": rotary_factor,
      "rope_theta": config.rope_base,
      "rope_scaling": None,
      "layer_norm_eps": config.norm_eps,
      "qk_layernorm": config.qk_norm,
      "hidden_act": "gelu_new",
      "resid_pdrop": config.dropout,
      "embd_pdrop": 0.0,
      "attention_dropout": 0.0,
      "initializer_range": 0.02,
      "max_position_embeddings": context,
      "tie_word_embeddings": False,
      "bos_token_id": eot,
      "eos_token_id": eot,
      "use_cache": True,
  }


def torch_tensors(config: TransformerConfig) -> dict[str, TorchTensor]:
  """Every tensor of torch's by name, a layer after the other, then the ends; no classifier's."""
  params = abstract_params(dataclasses.replace(config, classifier=None))
  shapes = {
      parameter_name(path): leaf.shape
      for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  return dict(_named(config, shapes))


def _named(
    config: TransformerConfig, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, TorchTensor]]:
  for parameter, shape in shapes.items():
    module, _, kind = parameter.rpartition(".")
    suffix = "bias" if kind == "bias" else "weight"
    if module in END_MODULES:
      tensor = TorchTensor(parameter, None, _torch_shape(kind, shape), shape)
      yield f"{END_MODULES[module]}.{suffix}", tensor
      continue
    theirs, ours = LAYER_MODULES[module.removeprefix("layers.")], shape[1:]
    for layer in range(config.num_layers):
      name = f"model.layers.{layer}.{theirs}.{suffix}"
      yield name, TorchTensor(parameter, layer, _torch_shape(kind, ours, module), ours)


def _torch_shape(kind: str, ours: Shape, module: str = "") -> Shape:
  if kind == "bias":
    return (int(np.prod(ours)),)
  if kind != "kernel":
    return ours
  inputs = 2 if module.endswith("attn.out") else 1  # Its inputs are heads and their dimensions.
  return int(np.prod(ours[inputs:])), int(np.prod(ours[:inputs]))


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split(".")
    group = tree
    for parent in parents:
      group = group.setdefault(parent, {})
    group[last] = leaf
  return tree
