"""How long a program must take at least, from what it does and what the hardware can.

    compute = operations / peak
    memory = bytes / memory bandwidth
    links = for each collective, bytes sent / bandwidth of the links that its group can use
    step = the largest of these, if all overlaps; their sum, if nothing does

A group of TPUs that lies along k axes of the torus uses the links of these k axes, in both
directions where an axis wraps round (v5e and v6e: 16 long; v4, v5p, v7x: multiples of 4), in one
where it does not. A group in more than one slice goes through its hosts' network cards, which their
devices share.
"""

import dataclasses
from typing import Any

from chexmix_jax.parallel.hardware import Chip
from chexmix_jax.planning.hlo import Totals


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a run of a program on a device."""

  compute: float
  memory: float
  links: float
  network: float

  @property
  def seconds(self) -> float:
    """Where all overlaps."""
    return max(self.compute, self.memory, self.links, self.network)

  @property
  def seconds_without_overlap(self) -> float:
    return self.compute + self.memory + self.links + self.network

  @property
  def bound(self) -> str:
    """What it waits for."""
    return max(("compute", "memory", "links", "network"), key=lambda name: getattr(self, name))


def roofline(totals: Totals, chip: Chip, devices: list[Any]) -> Roofline:
  """Of a program on TPUs; `devices` in the order of the mesh, with their coordinates."""
  links = network = 0.0
  sides = [1 + max(device.coords[i] for device in devices) for i in range(3)]
  for collective in totals.collectives:
    group = [devices[i] for i in collective.group]
    if len({getattr(device, "slice_index", 0) or 0 for device in group}) > 1:
      network += collective.bytes / (chip.nic_bandwidth / chip.host_devices)
      continue
    ways = 0
    for i, side in enumerate(sides):
      if len({device.coords[i] for device in group}) > 1:
        wraps = side % 16 == 0 if chip.ici_dims == 2 else side % 4 == 0
        ways += 2 if wraps else 1
    links += collective.bytes / (chip.ici_bandwidth * max(ways, 1))
  return Roofline(totals.flops / chip.flops, totals.bytes / chip.hbm_bandwidth, links, network)
