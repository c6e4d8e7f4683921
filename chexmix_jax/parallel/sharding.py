"""One table from array axes to mesh axes, and what follows from it.

Every array axis has a logical name. RULES maps the names to mesh axes; PARAM_AXES names the axes of
every parameter of the transformer. Nothing else in the package mentions a mesh axis.
"""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from chexmix_jax.errors import UserError

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}

Axes = tuple[str | None, ...]

# Input and output axes of the layers' matrices, which their additions and quantised forms share.
_MATRICES: dict[str, tuple[Axes, Axes]] = {
    "layers.attn.q": (("embed",), ("heads", None)),
    "layers.attn.k": (("embed",), ("heads", None)),
    "layers.attn.v": (("embed",), ("heads", None)),
    "layers.attn.out": (("heads", None), ("embed",)),
    "layers.mlp.up": (("embed",), ("mlp",)),
    "layers.mlp.down": (("mlp",), ("embed",)),
}


def _matrix_axes(inputs: Axes, outputs: Axes) -> dict[str, Axes]:
  """Of one matrix; the layers' leading axis (stacked layers) is never sharded."""
  # What one number a column is of, the sum over the inputs, is whole on every device of fsdp.
  columns = tuple(None if axis == "embed" else axis for axis in outputs)
  return {
      "kernel": (None, *inputs, *outputs),
      "bias": (None, *columns),
      "lora_a": (None, *inputs, None),
      "lora_b": (None, None, *outputs),
      "magnitude": (None, *columns),
      "kernel_int8": (None, *inputs, *outputs),
      "kernel_scale": (None, *columns),
      # Of 4 bits the inputs are one axis, and scales go by groups of them.
      "kernel_int4": (None, inputs[0], *outputs),
      "kernel_group_scale": (None, None, *columns),
  }


PARAM_AXES: dict[str, Axes] = {
    "embed.embedding": ("vocab", "embed"),
    "layers.norm.scale": (None, None),
    "layers.norm.bias": (None, None),
    **{
        f"{matrix}.{name}": axes
        for matrix, sides in _MATRICES.items()
        for name, axes in _matrix_axes(*sides).items()
    },
    "layers.attn.q_norm.scale": (None, None),
    "layers.attn.q_norm.bias": (None, None),
    "layers.attn.k_norm.scale": (None, None),
    "layers.attn.k_norm.bias": (None, None),
    "final_norm.scale": (None,),
    "final_norm.bias": (None,),
    "lm_head.kernel": ("embed", "vocab"),
    "lm_head.bias": ("vocab",),
    "classifier.mean": (None,),
    "classifier.scale": (None,),
    "classifier.linear.kernel": (None, None),
    "classifier.linear.bias": (None,),
    "rows.embedding": (None, "embed"),
    "rows.kernel": ("embed", None),
    "rows.bias": (None,),
}


def check_rules(mesh: Mesh | AbstractMesh) -> None:
  """UserError where RULES or PARAM_AXES cannot hold on a mesh, naming the parameter or the axis.

  A mesh axis may share out one axis of an array only, and must be one of the mesh.
  """
  for name, mesh_axes in RULES.items():
    for axis in mesh_axes:
      if axis not in mesh.shape:
        raise UserError(f"RULES maps {name!r} to {axis!r}, which the mesh lacks; mend {__name__}.")
  for name, axes in PARAM_AXES.items():
    used = [axis for logical in axes if logical for axis in RULES[logical]]
    for axis in used:
      if used.count(axis) > 1:
        raise UserError(
            f"RULES shares out two axes of parameter {name} over the mesh axis {axis!r}; mend"
            f" {__name__}."
        )


def check_sharded(mesh: Mesh, params: dict[str, Any]) -> None:
  """UserError that names a parameter of which a device holds more than PARAM_AXES says."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  wanted = jax.tree.leaves(param_shardings(mesh, params))
  for (path, leaf), sharding in zip(leaves, wanted, strict=True):
    held = leaf.sharding.shard_shape(leaf.shape)
    if held != sharding.shard_shape(leaf.shape):
      raise UserError(
          f"A device holds {held} of parameter {parameter_name(path)} {leaf.shape}, and should hold"
          f" {sharding.shard_shape(leaf.shape)}; this is a fault of the program, please report it."
      )


def parameter_name(path: Any) -> str:
  """The keys of the dicts along a tree's path, joined by dots, as PARAM_AXES names parameters."""
  return ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def partition_spec(axes: Axes) -> PartitionSpec:
  """The mesh axes of an array whose axes carry these logical names."""
  return PartitionSpec(*(RULES[name] if name else None for name in axes))


def named_sharding(mesh: Mesh | AbstractMesh, axes: Axes) -> NamedSharding:
  """Sharding over `mesh` of an array whose axes carry these logical names."""
  return NamedSharding(mesh, partition_spec(axes))


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
  """Pins the sharding of an activation on the mesh in force; without one, x itself."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def sharded_shapes(mesh: Mesh | AbstractMesh, abstract_params: dict[str, Any]) -> dict[str, Any]:
  """The shapes of parameters with their NamedSharding, see param_shardings."""
  return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      abstract_params,
      param_shardings(mesh, abstract_params),
  )


def param_shardings(
    mesh: Mesh | AbstractMesh, abstract_params: dict[str, Any]
) -> dict[str, Any]:
  """NamedSharding of every parameter; UserError names one that is unknown or cannot be divided."""
  check_rules(mesh)

  def sharding(path, leaf):
    name = parameter_name(path)
    if name not in PARAM_AXES:
      raise UserError(f"Parameter {name} has no axes; add it to PARAM_AXES in {__name__}.")
    axes = PARAM_AXES[name]
    if len(axes) != leaf.ndim:
      raise UserError(f"Parameter {name} has {leaf.ndim} axes, but PARAM_AXES names {len(axes)}.")
    for size, axis in zip(leaf.shape, axes, strict=True):
      parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES[axis]) if axis else 1
      if size % parts:
        raise UserError(
            f"Parameter {name} of shape {leaf.shape} cannot be divided by {parts} along its"
            f" {axis!r} axis of {size}; choose another mesh or model size."
        )
    return named_sharding(mesh, axes)

  return jax.tree_util.tree_map_with_path(sharding, abstract_params)
