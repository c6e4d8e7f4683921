"""The table of accelerators: found by what jax calls them, and right in its proportions."""

import jax
import pytest

from chexmix_jax.parallel.hardware import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "v7x"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("NVIDIA GeForce RTX 4080", "RTX4080"),
    ],
)
def test_a_chip_is_found_by_its_device_kind(kind, name):
  assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "TPU v99", "NVIDIA GeForce GTX 1080", ""])
def test_an_unknown_device_has_no_chip(kind):
  assert chip_of(kind) is None


def test_the_device_that_runs_the_tests_has_no_chip_on_a_cpu():
  assert chip_of(jax.devices("cpu")[0].device_kind) is None


def test_no_two_rows_answer_to_one_kind():
  kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
  assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("name", CHIPS)
def test_figures_have_the_units_that_they_say(name):
  chip = CHIPS[name]
  # From a desktop's card to what a rack may have: a slip by a thousand or by eight bits stands out.
  assert 5e13 < chip.flops < 5e15
  assert 11 * 2**30 < chip.hbm_bytes < 300 * 2**30
  assert 4e11 < chip.hbm_bandwidth < 1e13
  # Products per byte of memory read: 75 of the smallest card to 600.
  assert 70 < chip.flops / chip.hbm_bandwidth < 600
  is_tpu = name.startswith("v")
  assert (chip.ici_dims in (2, 3)) == (chip.ici_bandwidth > 0) == is_tpu
  assert (chip.peer_bandwidth > 0) != is_tpu
  assert chip.host_devices in (4, 8) or chip.nic_bandwidth == 0
