"""The device mesh: axes data, fsdp and tensor."""

import dataclasses
import math

import jax

from chexmix_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 on at most one of them takes all that are left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


def make_mesh(config: MeshConfig = MeshConfig()) -> jax.sharding.Mesh:
  """Mesh of the config's shape over all devices (over the first ones where it asks for fewer).

  Raises UserError where the sizes do not fit the devices.
  """
  sizes = [config.data, config.fsdp, config.tensor]
  count = jax.device_count()
  asked = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise UserError(f"mesh {asked}: give positive sizes, -1 on at most one axis.")
  fixed = math.prod(size for size in sizes if size != -1)
  if fixed > count or (-1 in sizes and count % fixed):
    raise UserError(f"mesh {asked} does not fit {count} device(s); change the config's mesh.")
  sizes = [count // fixed if size == -1 else size for size in sizes]
  return jax.make_mesh(
      tuple(sizes),
      AXES,
      axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
      devices=jax.devices()[: math.prod(sizes)],
  )
