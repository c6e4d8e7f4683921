"""Which parameters a run trains, and which it only reads."""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from chexmix_jax.errors import UserError
from chexmix_jax.models.adapter import (
    ADDED,
    PROJECTIONS,
    AdapterConfig,
    column_lengths,
    merge_adapter,
    take_rows,
)
from chexmix_jax.models.quantization import dequantise_layer, quantise_layers
from chexmix_jax.models.transformer import (
    Params,
    TransformerConfig,
    abstract_params,
    init_params,
)
from chexmix_jax.parallel.sharding import parameter_name
from chexmix_jax.training.logging import count_parameters


def prepare_params(
    config: TransformerConfig, key: jax.Array, base: Params | None = None
) -> tuple[Params, Params]:
  """Trained and frozen parameters of a run: `base`, or fresh ones, with the adapter's additions.

  Without an adapter all are trained. Frozen ones are of the model's dtype, and quantised where the
  adapter says so. Additions change nothing at first. Call under jax.jit with out_shardings.
  """
  adapter = config.adapter
  params = init_params(config, key)
  if base is not None:
    params = join(params, base)
  if adapter is None:
    return params, {}
  if adapter.rows:
    params["rows"] = take_rows(adapter, params)
  if adapter.base != "float":
    params["layers"] = quantise_layers(params["layers"], adapter.base)
  if adapter.kind == "dora":
    params["layers"] = _with_magnitudes(config, params["layers"])
  trained, frozen = split(adapter, params)
  dtype = jnp.dtype(config.dtype)

  def held(path: Any, leaf: jax.Array) -> jax.Array:
    return leaf if "kernel_" in parameter_name(path) else leaf.astype(dtype)

  return trained, jax.tree_util.tree_map_with_path(held, frozen)


def abstract_trained(config: TransformerConfig) -> Params:
  """Shapes of what a run with this config trains."""
  return jax.eval_shape(lambda: prepare_params(config, jax.random.key(0))[0])


def count_trained(config: TransformerConfig) -> tuple[int, int]:
  """How many parameters a run with this config trains, and how many the model has."""
  plain = abstract_params(dataclasses.replace(config, adapter=None))
  return count_parameters(abstract_trained(config)), count_parameters(plain)


def _with_magnitudes(config: TransformerConfig, layers: Params) -> Params:
  """Magnitudes that leave every matrix as it is: the lengths of its columns."""
  heads, adapter = (config.num_heads, config.head_dim), config.adapter
  assert adapter is not None

  def lengths(layer: Params) -> dict[str, jax.Array]:
    layer = dequantise_layer(layer, heads, jnp.float32)
    found = {}
    for projection in filter(adapter.adapts, PROJECTIONS):
      room, name = projection.split(".")
      given = layer[room][name]
      found[projection] = column_lengths(
          adapter, given["kernel"], given["lora_a"], given["lora_b"]
      )
    return found

  for projection, magnitude in jax.lax.map(lengths, layers).items():
    room, name = projection.split(".")
    layers = join(layers, {room: {name: {"magnitude": magnitude}}})
  return layers


def split(adapter: AdapterConfig, params: Params) -> tuple[Params, Params]:
  """What the adapter trains, and the rest.

  UserError for a pattern that matches nothing, or what is quantised.
  """
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  names = [parameter_name(path) for path, _ in leaves]
  for pattern in adapter.train:
    matched = [n for n in fnmatch.filter(names, pattern) if n.rsplit(".", 1)[-1] not in ADDED]
    if not matched:
      raise UserError(f"adapter.train holds {pattern!r}, which matches no parameter of the model.")
    if quantised := [name for name in matched if "kernel_" in name]:
      raise UserError(
          f"adapter.train holds {pattern!r}, but {quantised[0]} is quantised and cannot be trained;"
          " use adapter.base='float', or leave it out."
      )

  def part(is_wanted: Callable[[str], bool]) -> Params:
    return _kept(params, is_wanted, "")

  return part(adapter.trains), part(lambda name: not adapter.trains(name))


def merged_params(config: TransformerConfig, trained: Params, frozen: Params) -> Params:
  """Plain parameters of the model that a run with an adapter has made, in the model's dtype."""
  assert config.adapter is not None
  params = join(trained, frozen)
  heads = config.num_heads, config.head_dim
  layers = jax.vmap(lambda layer: dequantise_layer(layer, heads, config.dtype))(params["layers"])
  return merge_adapter(config.adapter, {**params, "layers": layers})


def join(first: Params, second: Params) -> Params:
  """The leaves of both; of those that both have, the second's."""
  joined = dict(first)
  for name, value in second.items():
    is_room = isinstance(value, dict) and isinstance(first.get(name), dict)
    joined[name] = join(first[name], value) if is_room else value
  return joined


def _kept(tree: Params, is_wanted: Callable[[str], bool], prefix: str) -> Params:
  """The leaves whose names are wanted, without empty rooms."""
  kept: Params = {}
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if isinstance(value, dict):
      if room := _kept(value, is_wanted, f"{name}."):
        kept[key] = room
    elif is_wanted(name):
      kept[key] = value
  return kept
