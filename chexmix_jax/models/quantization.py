"""Frozen matrices in 8 or 4 bits, made into numbers again where a layer uses them.

8 bits: round(127 · w / m) with m the largest |w| of the column. 4 bits: round(7 · w / m) with m the
largest |w| among 64 numbers that follow one another down a column, two of them in a byte. Symmetric
rounding to nearest, as in LLM.int8() (Dettmers et al. 2022) and, by groups, in GPTQ's baseline
(Frantar et al. 2022).

Shape suffixes: I input numbers, O output numbers (each may stand for several axes), G groups.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from chexmix_jax.errors import UserError
from chexmix_jax.models.adapter import PROJECTIONS

GROUP = 64
"""Numbers that share a scale, of 4 bits."""


def quantise(
    kernel: jax.Array, num_inputs: int, bits: Literal["int8", "int4"]
) -> dict[str, jax.Array]:
  """`kernel_int8` and `kernel_scale`, or `kernel_int4` and `kernel_group_scale`, of a kernel.

  Of the kernel (inputs, outputs), `num_inputs` axes are inputs. int8 keeps the shape, with scales
  (outputs). int4 is uint8 (I / 2, outputs), with scales (I / 64, outputs): of each group the first
  32 inputs stand in the low halves of its bytes, the others in the high ones. (Were it even and odd
  inputs, XLA would write the kernel to memory several times to weave them.)
  """
  outputs = kernel.shape[num_inputs:]
  kernel_IO = kernel.reshape(-1, *outputs).astype(jnp.float32)
  if bits == "int8":
    scale_O = _scale(jnp.max(jnp.abs(kernel_IO), axis=0), 127)
    rounded = jnp.rint(kernel_IO / scale_O).astype(jnp.int8)
    return {"kernel_int8": rounded.reshape(kernel.shape), "kernel_scale": scale_O}
  if len(kernel_IO) % GROUP:
    raise UserError(
        f"A matrix of {len(kernel_IO)} inputs cannot be held in groups of {GROUP}; use int8."
    )
  groups = kernel_IO.reshape(-1, GROUP, *outputs)
  scale_GO = _scale(jnp.max(jnp.abs(groups), axis=1), 7)
  low, high = jnp.split(jnp.rint(groups / scale_GO[:, None]).astype(jnp.int8) & 15, 2, axis=1)
  packed = (low | high << 4).astype(jnp.uint8).reshape(-1, *outputs)
  return {"kernel_int4": packed, "kernel_group_scale": scale_GO}


def _scale(largest: jax.Array, levels: int) -> jax.Array:
  return jnp.where(largest > 0, largest, 1) / levels


def dequantise(given: dict[str, jax.Array], inputs: tuple[int, ...], dtype: Any) -> jax.Array:
  """The kernel (inputs, outputs) of what `quantise` made."""
  if "kernel_int8" in given:
    return (given["kernel_int8"].astype(jnp.float32) * given["kernel_scale"]).astype(dtype)
  scale, packed = given["kernel_group_scale"], given["kernel_int4"].astype(jnp.int8)
  packed = packed.reshape(len(scale), GROUP // 2, *scale.shape[1:])
  # Arithmetic shifts bring the sign along.
  groups = jnp.concatenate([packed << 4 >> 4, packed >> 4], axis=1)
  kernel = groups.astype(jnp.float32) * scale[:, None]
  return kernel.reshape(*inputs, *scale.shape[1:]).astype(dtype)


def quantise_layers(layers: dict[str, Any], bits: Literal["int8", "int4"]) -> dict[str, Any]:
  """Stacked layers, with each of the six kernels in its place quantised."""

  def replace(projection: str, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
    inputs = 2 if projection == "attn.out" else 1
    kept = {name: leaf for name, leaf in given.items() if name != "kernel"}
    return kept | jax.vmap(lambda kernel: quantise(kernel, inputs, bits))(given["kernel"])

  return _each(layers, replace)


def dequantise_layer(layer: dict[str, Any], heads: tuple[int, int], dtype: Any) -> dict[str, Any]:
  """One layer with kernels of `dtype` in place of quantised ones; (H, K) are the heads."""

  def replace(projection: str, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
    if "kernel" in given:
      return given
    kept = {name: leaf for name, leaf in given.items() if not name.startswith("kernel_")}
    inputs = heads if projection == "attn.out" else (-1,)
    return kept | {"kernel": dequantise(given, inputs, dtype)}

  return _each(layer, replace)


def _each(layers: dict[str, Any], replace: Callable[[str, dict[str, Any]], Any]) -> dict[str, Any]:
  """The same tree with what `replace` makes of each projection."""
  found = dict(layers)
  for projection in PROJECTIONS:
    room, name = projection.split(".")
    found[room] = {**found[room], name: replace(projection, found[room][name])}
  return found
