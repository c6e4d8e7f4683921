"""The device mesh: axes data, fsdp and tensor."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils

from chexmix_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 on at most one of them takes all that are left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


def mesh_sizes(config: MeshConfig, count: int) -> tuple[int, int, int]:
  """Devices along each axis, of `count` there are; UserError where they do not fit."""
  sizes = [config.data, config.fsdp, config.tensor]
  asked = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise UserError(f"mesh {asked}: give positive sizes, -1 on at most one axis.")
  fixed = math.prod(size for size in sizes if size != -1)
  if fixed > count or (-1 in sizes and count % fixed):
    raise UserError(f"mesh {asked} does not fit {count} device(s); change the config's mesh.")
  data, fsdp, tensor = (count // fixed if size == -1 else size for size in sizes)
  return data, fsdp, tensor


def make_mesh(
    config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Mesh of the config's shape over all devices (over the first ones where it asks for fewer).

  `devices` are those of jax by default; those of a topology description will do. Where they are of
  several slices, which only the data centre's network joins, each slice holds whole copies of the
  parameters: the data axis goes over slices first. Raises UserError where the sizes do not fit.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  devices = devices[: math.prod(sizes)]
  types = (jax.sharding.AxisType.Auto,) * len(AXES)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    # 16 x 16 on a torus of 4 x 8 x 8, say, cuts an axis of 8 in two.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, AXES, axis_types=types)
  if sizes[0] % slices:
    raise UserError(
        f"mesh data={sizes[0]} must be a multiple of the {slices} slices; fsdp and tensor stay in"
        " one slice."
    )
  inner = (sizes[0] // slices, *sizes[1:])
  grid = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices)
  return jax.sharding.Mesh(grid, AXES, axis_types=types)
