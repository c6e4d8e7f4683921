"""Plans of a training step: one config, or the best of its neighbours."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, get_args

from chexmix_jax.errors import UserError
from chexmix_jax.models import flops
from chexmix_jax.models.layer import Remat
from chexmix_jax.parallel.mesh import MeshConfig, mesh_sizes
from chexmix_jax.planning.compile import Compiled, compile_step
from chexmix_jax.planning.estimate import (
  Memory,
  estimate_memory,
  estimate_time,
  state_bytes,
  tokens_of_a_device,
)
from chexmix_jax.planning.roofline import Roofline, roofline
from chexmix_jax.planning.target import Target
from chexmix_jax.training.setup import TrainConfig


@dataclasses.dataclass(frozen=True)
class TrainPlan:
  """What a training step needs of each device, and how long it should take.

  Attributes:
    config: its mesh has no -1.
    memory: bytes by use; what the compiler adds to fill its tiles is with the activations.
    time: None where the step does not fit, as there is then no program to read.
    compiled: None where no compiler was asked.
  """

  config: TrainConfig
  target: Target
  memory: Memory
  time: Roofline | None
  compiled: Compiled | None

  @property
  def fits(self) -> bool:
    return self.memory.total <= self.target.chip.hbm_bytes

  @property
  def tokens(self) -> float:
    """Of a step on a device."""
    return self.config.data.batch_size * self.config.data.context / self.target.count

  def mfu(self, seconds: float) -> float:
    """Share of the peak of a step of that many seconds, by the formula of models/flops.py."""
    model, context = self.config.model, self.config.data.context
    return flops.utilization(model, context, self.tokens / seconds, self.target.chip)

  def to_dict(self) -> dict[str, Any]:
    """For JSON; bytes, seconds and operations of a device."""
    sizes = dataclasses.asdict(self.config.mesh)
    result: dict[str, Any] = {
        "topology": self.target.name, "slices": self.target.slices, "devices": self.target.count,
        "mesh": sizes, "batch_size": self.config.data.batch_size,
        "context": self.config.data.context, "accumulation": self.config.accumulation,
        "remat": self.config.model.remat,
        "memory": {
            **dataclasses.asdict(self.memory), "peak": self.memory.total,
            "capacity": self.target.chip.hbm_bytes, "fits": self.fits,
        },
    }  # fmt: skip
    if self.time:
      result["time"] = {
          **dataclasses.asdict(self.time), "step": self.time.seconds, "bound": self.time.bound,
          "step_without_overlap": self.time.seconds_without_overlap,
          "mfu": self.mfu(self.time.seconds),
          "mfu_without_overlap": self.mfu(self.time.seconds_without_overlap),
          "tokens_per_second_per_device": self.tokens / self.time.seconds,
      }  # fmt: skip
    if self.compiled:
      result["compile_seconds"] = self.compiled.seconds
      if totals := self.compiled.totals:
        result["flops"], result["bytes"] = totals.flops, totals.bytes
        result["collectives"] = [
            {"kind": c.kind, "devices": len(c.group), "count": c.count, "bytes": c.bytes}
            for c in totals.collectives
        ]
    return result


def plan_training(config: TrainConfig, target: Target) -> TrainPlan:
  """By the compiler where there is one for the target, else by shape arithmetic."""
  config = _resolved(config, target)
  sizes = _sizes(config)
  if not target.devices:
    memory = estimate_memory(config, sizes)
    return TrainPlan(config, target, memory, estimate_time(config, sizes, target.chip), None)
  compiled = compile_step(config, list(target.devices))
  parameters, optimizer = state_bytes(config, sizes)
  memory = Memory(parameters, optimizer, compiled.peak - parameters - optimizer)
  time: Roofline | None = None
  if compiled.totals and target.chip.ici_dims:
    time = roofline(compiled.totals, target.chip, compiled.devices)
  elif compiled.totals:
    time = estimate_time(config, sizes, target.chip)
  return TrainPlan(config, target, memory, time, compiled)


def neighbours(config: TrainConfig, target: Target) -> Iterator[TrainConfig]:
  """The same training with other remat, micro-batches and meshes, as far as they divide."""
  config = _resolved(config, target)
  choices = get_args(Remat), _powers(target.count), (1, 2, 4, 8)
  for remat, fsdp, tensor in itertools.product(*choices):
    if target.count // target.slices % (fsdp * tensor):
      continue
    mesh = MeshConfig(target.count // (fsdp * tensor), fsdp, tensor)
    model = dataclasses.replace(config.model, remat=remat)
    if any(size % tensor for size in (model.num_heads, model.mlp_dim, model.vocab_size)):
      continue
    rows, rest = divmod(config.data.batch_size, mesh.data * fsdp)
    if rest or model.width % fsdp:
      continue
    for accumulation in _powers(rows):
      if rows % accumulation == 0:
        yield dataclasses.replace(config, model=model, mesh=mesh, accumulation=accumulation)


def ranked(config: TrainConfig, target: Target, nearest: bool = False) -> list[TrainConfig]:
  """The neighbours that should fit by shape arithmetic, fastest first, or `nearest` to the config.

  A neighbour is nearer the fewer of its settings differ, and among those the faster it is.
  """
  given = _resolved(config, target)
  rows: list[tuple[Any, ...]] = []
  for other in neighbours(config, target):
    sizes = _sizes(other)
    if estimate_memory(other, sizes).total > target.chip.hbm_bytes:
      continue
    differing = (
        (other.model.remat != given.model.remat) + (other.accumulation != given.accumulation)
        + (other.mesh != given.mesh)
    )  # fmt: skip
    time = estimate_time(other, sizes, target.chip)
    # Fewer and larger products are faster than arithmetic tells.
    key = (differing if nearest else 0, time.seconds, time.seconds_without_overlap)
    rows.append((key, -tokens_of_a_device(other, sizes), len(rows), other))
  return [other for *_, other in sorted(rows, key=lambda row: row[:3])]


def _resolved(config: TrainConfig, target: Target) -> TrainConfig:
  """With the mesh's sizes in numbers; UserError where rows or slices do not divide."""
  sizes = mesh_sizes(config.mesh, target.count)
  if sizes[0] * sizes[1] * sizes[2] != target.count:
    raise UserError(
        f"mesh data={sizes[0]} x fsdp={sizes[1]} x tensor={sizes[2]} leaves some of the"
        f" {target.count} devices of {target.name} idle; set one axis to -1."
    )
  rows = sizes[0] * sizes[1] * config.accumulation
  if config.data.batch_size % rows:
    raise UserError(
        f"data.batch_size={config.data.batch_size} must be a multiple of {rows} (data x fsdp"
        f" devices x accumulation) on {target.name}; change it, mesh or accumulation."
    )
  return dataclasses.replace(config, mesh=MeshConfig(*sizes))


def _sizes(config: TrainConfig) -> tuple[int, int, int]:
  return config.mesh.data, config.mesh.fsdp, config.mesh.tensor


def _powers(most: int) -> list[int]:
  return [1 << i for i in range(most.bit_length()) if 1 << i <= most]
