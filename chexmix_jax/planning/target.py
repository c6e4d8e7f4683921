"""The devices that a plan is for: TPUs by the compiler's description, GPUs by their figures."""

import dataclasses
import functools
import importlib.util
from typing import Any

import jax
from jax.experimental import topologies

from chexmix_jax.errors import UserError
from chexmix_jax.parallel.hardware import CHIPS, Chip, chip_of


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to plan for.

  Attributes:
    name: as it was asked for, such as "v5e:16x16" or "H100:8".
    chip: figures of each device.
    count: devices in all slices.
    slices: of a TPU; one is joined to another only by the data centre's network.
    devices: descriptions that the TPU compiler takes; none of a GPU.
  """

  name: str
  chip: Chip
  count: int
  slices: int
  devices: tuple[Any, ...]


def find_target(name: str, slices: int = 1) -> Target:
  """The target of a name, "v5e:16x16" (KIND:TOPOLOGY) of a TPU, "H100:8" (KIND:COUNT) of GPUs, or
  "local" for what is here.

  UserError where the kind or the shape is not known, and where libtpu is not installed.
  """
  if name == "local":
    return _local()
  kind, _, shape = name.partition(":")
  if kind not in CHIPS or not shape:
    raise UserError(
        f"--topology={name} is not known; name KIND:SHAPE such as v5e:16x16 or H100:8, with KIND"
        f" one of {', '.join(CHIPS)}."
    )
  chip = CHIPS[kind]
  if not chip.ici_dims:
    if not shape.isdecimal() or int(shape) < 1 or slices != 1:
      raise UserError(f"--topology={name}: give the number of GPUs, such as {kind}:8.")
    return Target(name, chip, int(shape), 1, ())
  devices = _devices(name, slices)
  return Target(name, chip, len(devices), slices, devices)


def _local() -> Target:
  """What jax runs on here."""
  devices = jax.devices()
  chip = chip_of(devices[0].device_kind)
  if chip is None:
    raise UserError(
        f"--topology=local: the figures of {devices[0].device_kind} are not known; name another."
    )
  return Target("local", chip, len(devices), 1, tuple(devices))


@functools.cache
def _devices(name: str, slices: int) -> tuple[Any, ...]:
  more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if name.startswith("v4:"):
    more["chip_config_name"] = "megacore"
  if set(name.partition(":")[2].split("x")) == {"1"}:  # A host has more, unless it is said.
    more["chips_per_host_bounds"] = (1, 1, 1)
  try:
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices)
  except Exception as error:  # jax raises several kinds, of which one is private.
    if importlib.util.find_spec("libtpu") is None:
      raise UserError(
          "The TPU compiler is not installed; pip install 'chexmix-jax[plan]', then start again."
      ) from error
    reason = str(error).strip().split("\n")[0]
    raise UserError(f"--topology={name} is not one that libtpu has ({reason}); mend it.") from error
