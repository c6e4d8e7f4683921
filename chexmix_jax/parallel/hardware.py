"""Published figures of the accelerators: what a roofline and a share of the peak are taken against.

Sources, by row of CHIPS:
  TPU: Google's pages https://docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (read in late
    2026). ICI of a link in one direction is the "bidirectional bandwidth per chip" over twice its
    ports, 4 on a 2D torus and 6 on a 3D one; of v4, for which the page has none, it is that of
    https://jax-ml.github.io/scaling-book/tpus ("How to scale your model"), where v5p's too is a
    tenth below the page's. `hbm_bytes` is what the TPU compiler (libtpu 0.0.42.1) says is available
    when a program asks for more; the rest is reserved.
  GPU: NVIDIA's data sheets of A100, H100, H200, DGX B200, L40S, A10, RTX A6000 and RTX A4000 (half
    of those figures that are "with sparsity"), the white papers of GA102 (RTX 3090), Ada (RTX 4070,
    4080, 4090) and RTX Blackwell (RTX 5090), "Peak BF16 Tensor TFLOPS with FP32 Accumulate"; NICs
    are those of DGX A100, DGX H100/H200 and DGX B200.
    `hbm_bytes` is the total that nvidia-smi shows, of which the driver takes some hundred MiB.
"""

import dataclasses

_GIB, _MIB = 2**30, 2**20
_G, _T = 1e9, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
  """One jax device: a chip, or half of one of v7x, whose two halves are two devices.

  v4 and v5p have two cores a chip that make one device ("megacore"). libtpu's ahead-of-time
  topology of v4 does so where chip_config_name="megacore" is given.

  Attributes:
    kinds: what jax.Device.device_kind says.
    flops: FLOP/s of dense bfloat16 products that are added up in float32.
    hbm_bytes: memory.
    hbm_bandwidth: of it, bytes/s.
    host_devices: devices of a host; 1 where a machine may have any number.
    nic_bandwidth: of a host to others, bytes/s in one direction; 0 where a machine may have any.
    ici_bandwidth: of one link of a TPU to one neighbour, bytes/s in one direction; 0 for a GPU.
    ici_dims: dimensions of the torus or mesh of TPUs, each of two links; 0 for a GPU.
    peer_bandwidth: of a GPU to all others of its host together, bytes/s in one direction, by NVLink
      or, where there is none, PCIe; 0 for a TPU.
  """

  kinds: tuple[str, ...]
  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  host_devices: int
  nic_bandwidth: float
  ici_bandwidth: float = 0.0
  ici_dims: int = 0
  peer_bandwidth: float = 0.0


def _tpu(kinds, flops, gib, hbm_bandwidth, host_devices, nic, ici, dims) -> Chip:
  return Chip(
      kinds, flops, int(gib * _GIB), hbm_bandwidth, host_devices, nic, ici_bandwidth=ici,
      ici_dims=dims,
  )  # fmt: skip


def _gpu(kind, flops, mib, hbm_bandwidth, peer, host_devices=1, nic=0.0) -> Chip:
  return Chip(
      (kind,), flops, mib * _MIB, hbm_bandwidth, host_devices, nic, peer_bandwidth=peer
  )


# NICs of a TPU host: the pages' bandwidth per chip (v5p 50, v6e and v7x 100 Gbit/s) times its
# chips; v5e has two of 100 Gbit/s a host. Of v4 the book says 25 GB/s.
CHIPS: dict[str, Chip] = {
    "v4": _tpu(("TPU v4",), 275 * _T, 30.75, 1228 * _G, 4, 25 * _G, 45 * _G, 3),
    "v5e": _tpu(("TPU v5 lite", "TPU v5e"), 197 * _T, 15.75, 819 * _G, 8, 25 * _G, 50 * _G, 2),
    "v5p": _tpu(("TPU v5", "TPU v5p"), 459 * _T, 95.74, 2765 * _G, 4, 25 * _G, 100 * _G, 3),
    "v6e": _tpu(("TPU v6 lite", "TPU v6e"), 918 * _T, 31.25, 1638 * _G, 8, 100 * _G, 100 * _G, 2),
    # Half of a chip: 2307 TFLOP/s, 7380 GB/s, and links of 100 GB/s that two devices share.
    "v7x": _tpu(("TPU7x",), 1153.5 * _T, 94.75, 3690 * _G, 8, 50 * _G, 50 * _G, 3),
    "A100-40": _gpu("NVIDIA A100-SXM4-40GB", 312 * _T, 40960, 1555 * _G, 300 * _G, 8, 200 * _G),
    "A100-80": _gpu("NVIDIA A100-SXM4-80GB", 312 * _T, 81920, 2039 * _G, 300 * _G, 8, 200 * _G),
    "H100": _gpu("NVIDIA H100 80GB HBM3", 989.5 * _T, 81559, 3350 * _G, 450 * _G, 8, 400 * _G),
    "H100-PCIe": _gpu("NVIDIA H100 PCIe", 756.5 * _T, 81559, 2039 * _G, 64 * _G),
    "H200": _gpu("NVIDIA H200", 989.5 * _T, 143771, 4800 * _G, 450 * _G, 8, 400 * _G),
    "B200": _gpu("NVIDIA B200", 2250 * _T, 183359, 8000 * _G, 900 * _G, 8, 400 * _G),
    "L40S": _gpu("NVIDIA L40S", 362.05 * _T, 46068, 864 * _G, 32 * _G),
    "A10": _gpu("NVIDIA A10", 125 * _T, 23028, 600 * _G, 32 * _G),
    "RTXA6000": _gpu("NVIDIA RTX A6000", 154.8 * _T, 49140, 768 * _G, 32 * _G),
    "RTXA4000": _gpu("NVIDIA RTX A4000", 76.7 * _T, 16376, 448 * _G, 32 * _G),
    "RTX5090": _gpu("NVIDIA GeForce RTX 5090", 209.5 * _T, 32607, 1792 * _G, 64 * _G),
    "RTX4090": _gpu("NVIDIA GeForce RTX 4090", 165.2 * _T, 24564, 1008 * _G, 32 * _G),
    "RTX4080": _gpu("NVIDIA GeForce RTX 4080", 97.5 * _T, 16376, 716.8 * _G, 32 * _G),
    "RTX4070": _gpu("NVIDIA GeForce RTX 4070", 58.3 * _T, 12282, 504.2 * _G, 32 * _G),
    "RTX3090": _gpu("NVIDIA GeForce RTX 3090", 71 * _T, 24576, 936 * _G, 32 * _G),
}


def chip_of(device_kind: str) -> Chip | None:
  """The chip whose jax.Device.device_kind this is; None for a CPU and for what is not in CHIPS."""
  return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)
