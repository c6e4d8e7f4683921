"""The platform in force, and the warning about an accelerator that is not used."""

import pathlib
import resource
import sys

import jax
import numpy as np
import pytest

from chexmix_jax.parallel import devices


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(devices.jax, "default_backend", lambda: "cpu")


def machine(root, *paths):
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()
  return root


@pytest.mark.parametrize(
    ("path", "kind", "accelerator"),
    [
        ("dev/nvidia0", "GPU", "cuda13"),
        ("proc/driver/nvidia/version", "GPU", "cuda13"),
        ("dev/accel0", "TPU", "tpu"),
        ("dev/vfio/0", "TPU", "tpu"),
    ],
)
def test_an_unused_accelerator_is_named_in_one_line(tmp_path, capsys, path, kind, accelerator):
  devices.warn_if_accelerator_unused(machine(tmp_path, path))
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("WARNING: ")
  assert kind in line and f"ACCELERATOR={accelerator} bash launch/setup.sh" in line


def test_nothing_is_said_without_an_accelerator(tmp_path, capsys):
  devices.warn_if_accelerator_unused(machine(tmp_path, "dev/null", "dev/vfio/vfio"))
  assert capsys.readouterr() == ("", "")


def test_nothing_is_said_where_jax_uses_it(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(devices.jax, "default_backend", lambda: "gpu")
  devices.warn_if_accelerator_unused(machine(tmp_path, "dev/nvidia0"))
  assert capsys.readouterr() == ("", "")


def test_nothing_is_said_where_the_cpu_was_asked_for(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  devices.warn_if_accelerator_unused(machine(tmp_path, "dev/nvidia0"))
  assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="it does nothing elsewhere")
def test_freed_memory_goes_back_to_the_system():
  def resident():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()

  # Each is smaller than what glibc maps on its own; the last one holds them back.
  blocks = [np.ones(1 << 12) for _ in range(4000)]
  last = blocks.pop()
  before = resident()
  del blocks
  devices.return_freed_memory()
  assert resident() < before - 100e6 and last.all()


def test_the_platform_is_that_of_the_mesh_in_force(monkeypatch):
  assert devices.platform() == "cpu"
  monkeypatch.setattr(devices.jax, "default_backend", lambda: "gpu")
  assert devices.platform() == "gpu"
  mesh = jax.sharding.Mesh(jax.local_devices(backend="cpu")[:1], ("data",))
  with jax.set_mesh(mesh):
    assert devices.platform() == "cpu"
