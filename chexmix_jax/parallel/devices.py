"""What depends on the kind of device."""

import ctypes
import os
import pathlib
import sys

import jax

MEMORY_FIRST = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""compiler_options for jax.jit: on a CPU, do not make what later operations need ahead of time.

Otherwise XLA makes float32 copies of all bfloat16 parameters at the start. Nothing changes on other
devices.
"""

STEP_OPTIONS: dict[str, dict[str, bool | int | str]] = {
    "cpu": {},
    "gpu": {
        # Collectives run beside the products that do not need them yet.
        "xla_gpu_enable_latency_hiding_scheduler": True,
    },
    "tpu": {
        # Products wait for whole gathered kernels, which come while others are computed. The
        # compiler would else cut a product into one for each device's part and add these up in
        # memory: for the published model on v6e:4x4 five times the memory traffic.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1 << 20,
    },
}
"""compiler_options of the training step by platform."""

_SIGNS = {
    "GPU": ("dev/nvidia0", "proc/driver/nvidia/version"),
    "TPU": ("dev/accel0", "dev/vfio/0"),
}
_MEND = {"GPU": "cuda13", "TPU": "tpu"}


def platform() -> str:
  """"cpu", "gpu" or "tpu": of the mesh in force; without one, of jax's default devices."""
  mesh = jax.sharding.get_abstract_mesh()
  return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def device_kind() -> str:
  """The model of the devices in force, as jax names it, such as "TPU v5 lite"."""
  mesh = jax.sharding.get_abstract_mesh()
  return jax.devices()[0].device_kind if mesh.empty else mesh.abstract_device.device_kind


def return_freed_memory() -> None:
  """Gives the system what was freed, where glibc would keep it for later."""
  if sys.platform == "linux":
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
      trim(0)


def warn_if_accelerator_unused(root: pathlib.Path = pathlib.Path("/")) -> None:
  """One line on standard error where the machine has a GPU or TPU and jax runs on its CPU.

  Silent where JAX_PLATFORMS asks for the CPU. `root` is the file system to look in.
  """
  if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
    return
  for kind, paths in _SIGNS.items():
    if any((root / path).exists() for path in paths):
      print(
          f"WARNING: this machine has a {kind}, but jax runs on its CPU: run"
          f" ACCELERATOR={_MEND[kind]} bash launch/setup.sh, then start again.",
          file=sys.stderr,
      )
