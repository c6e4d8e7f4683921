"""Times of collectives by the links that their devices have."""

import dataclasses

import pytest

from chexmix_jax.parallel.hardware import CHIPS
from chexmix_jax.planning.hlo import Collective, Totals
from chexmix_jax.planning.roofline import Roofline, roofline


@dataclasses.dataclass(frozen=True)
class Device:
  coords: tuple[int, int, int]
  slice_index: int = 0


def grid(columns, rows, slices=1):
  return [
      Device((x, y, 0), s) for s in range(slices) for y in range(rows) for x in range(columns)
  ]


@pytest.mark.parametrize(
    ("devices", "group", "links"),
    [
        (grid(16, 16), range(16), 2),  # A row of the torus, both ways round.
        (grid(16, 16), range(256), 4),
        (grid(4, 4), range(4), 1),  # Too short to wrap round.
        (grid(4, 4), range(16), 2),
    ],
)
def test_a_group_uses_the_links_of_its_axes(devices, group, links):
  chip = CHIPS["v5e"]
  totals = Totals(0.0, 0.0, (Collective("all-gather", tuple(group), 1, 1e9),))
  time = roofline(totals, chip, devices)
  assert time.links == pytest.approx(1e9 / (links * chip.ici_bandwidth)) and time.network == 0


def test_between_slices_the_hosts_network_is_shared():
  chip = CHIPS["v5e"]
  totals = Totals(0.0, 0.0, (Collective("all-reduce", (0, 16), 1, 1e9),))
  time = roofline(totals, chip, grid(4, 4, slices=2))
  assert time.network == pytest.approx(1e9 * 8 / 25e9) and time.links == 0


def test_the_largest_part_bounds_the_step():
  time = Roofline(compute=3.0, memory=1.0, links=2.0, network=0.5)
  assert (time.seconds, time.seconds_without_overlap, time.bound) == (3.0, 6.5, "compute")
