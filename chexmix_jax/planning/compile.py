"""Compiles the real programs ahead of time: a training step, a prefill, a step of decoding."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from chexmix_jax.errors import UserError
from chexmix_jax.models.cache import Cache
from chexmix_jax.models.transformer import (
    Transformer,
    TransformerConfig,
    abstract_params,
)
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import named_sharding, param_shardings
from chexmix_jax.planning import hlo
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.optimizer import make_optimizer
from chexmix_jax.training.setup import TrainConfig
from chexmix_jax.training.step import abstract_batch, abstract_state, jit_train_step

# Compiled at full effort a step takes four times as long and needs 1 to 2 % less memory.
_EFFORT = "O0"


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled program, on one device.

  Attributes:
    arguments: bytes of what it is given, as the compiler lays it out.
    temporaries: bytes besides, outputs that are not written over arguments included.
    totals: what it does; None where it does not fit, as the compiler then gives no program.
    devices: in the order of the mesh.
    seconds: of tracing and compiling.
  """

  arguments: float
  temporaries: float
  totals: hlo.Totals | None
  devices: list[Any]
  seconds: float

  @property
  def peak(self) -> float:
    return self.arguments + self.temporaries


def compile_step(config: TrainConfig, devices: Any) -> Compiled:
  """The training step of a config over the devices (of a topology, or jax's own)."""
  mesh = make_mesh(config.mesh, devices)

  def lower():
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = abstract_state(config.model, optimizer, mesh)
    vocabulary = Vocabulary.published()
    step = jit_train_step(config.model, vocabulary, optimizer, state, mesh, config.accumulation)
    batch = abstract_batch(
        config.model, config.data.batch_size, config.data.context, mesh
    )
    return step.lower(state, batch)

  return _compile(mesh, lower)


def compile_generation(
    model: TransformerConfig, mesh_config: MeshConfig, devices: Any, batch: int, prompt: int,
    length: int,
) -> dict[str, Compiled]:  # fmt: skip
  """Prefill of a prompt, and a step of decoding at the last of `length` tokens, by name."""
  mesh = make_mesh(mesh_config, devices)
  stacked = abstract_params(model)
  shardings = param_shardings(mesh, stacked)

  def leaf(shape, sharding):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(model.dtype), sharding=sharding)

  def one_layer(shape, sharding):
    spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
    return leaf(shape.shape[1:], jax.sharding.NamedSharding(mesh, spec))

  params = jax.tree.map(lambda s, sharding: leaf(s.shape, sharding), stacked, shardings)
  layer = jax.tree.map(one_layer, stacked["layers"], shardings["layers"])
  params["layers"] = (layer,) * model.num_layers

  def tokens(number):
    return jax.ShapeDtypeStruct(
        (batch, number), jnp.int32, sharding=named_sharding(mesh, ("batch", None))
    )

  def prefill(params, tokens_BT):
    logits_BTV, cache = Transformer(model, params).prefill(tokens_BT, length)
    return logits_BTV[:, -1], cache

  def decode(params, tokens_B1, positions_B1, cache):
    return Transformer(model, params).decode(tokens_B1, positions_B1, cache)

  shape = (batch, model.num_heads, length, model.head_dim)
  axes = ("batch", "heads", None, None)
  kv = leaf(shape[1:], named_sharding(mesh, axes[1:]))
  if batch > 1:
    kv = leaf(shape, named_sharding(mesh, axes))
  cache = Cache((kv,) * model.num_layers, (kv,) * model.num_layers)
  one = tokens(1)
  return {
      "prefill": _compile(mesh, lambda: jax.jit(prefill).lower(params, tokens(prompt))),
      "decode": _compile(
          mesh, lambda: jax.jit(decode, donate_argnums=3).lower(params, one, one, cache)
      ),
  }


def _compile(mesh: jax.sharding.Mesh, lower: Callable[[], Any]) -> Compiled:
  start = time.perf_counter()
  devices = list(mesh.devices.flat)
  with jax.set_mesh(mesh), _settings():
    try:
      compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
      size = bytes_needed(str(error))
      if size is None:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"The program does not compile ({reason}); choose other settings."
        ) from error
      return Compiled(0.0, size, None, devices, time.perf_counter() - start)
  memory = compiled.memory_analysis()
  return Compiled(
      memory.argument_size_in_bytes,
      memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
      hlo.totals(compiled.as_text(), mesh.size),
      devices,
      time.perf_counter() - start,
  )


def bytes_needed(message: str) -> float | None:
  """What a program that does not fit would need, by the TPU compiler's words; else None."""
  found = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([GM])\b", message)
  return float(found[1]) * (2**30 if found[2] == "G" else 2**20) if found else None


@contextlib.contextmanager
def _settings():
  """Little effort, and no cache on disk: what is compiled for others cannot be read back."""
  ours = {"jax_optimization_level": _EFFORT, "jax_enable_compilation_cache": False}
  before = {name: getattr(jax.config, name) for name in ours}
  _configure(ours)
  try:
    yield
  finally:
    _configure(before)


def _configure(settings: dict[str, Any]):
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # jax reads once whether there is to be a cache.
