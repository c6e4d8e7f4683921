"""Plans of generation: the prefill of a prompt, and each token after it."""

import dataclasses
from typing import Any

from chexmix_jax.models import flops
from chexmix_jax.parallel.mesh import mesh_sizes
from chexmix_jax.planning.compile import compile_generation
from chexmix_jax.planning.estimate import state_bytes
from chexmix_jax.planning.roofline import Roofline, roofline
from chexmix_jax.planning.target import Target
from chexmix_jax.training.setup import TrainConfig


@dataclasses.dataclass(frozen=True)
class GenerationPlan:
  """One of the two programs.

  Attributes:
    program: "prefill" or "decode".
    tokens: that a run of it takes or gives, over all rows.
    peak: bytes of a device.
  """

  program: str
  target: Target
  batch: int
  tokens: int
  peak: float
  time: Roofline | None

  def to_dict(self) -> dict[str, Any]:
    """For JSON; bytes and seconds of a device."""
    capacity = self.target.chip.hbm_bytes
    result: dict[str, Any] = {
        "program": self.program, "topology": self.target.name, "batch": self.batch,
        "tokens": self.tokens,
        "memory": {"peak": self.peak, "capacity": capacity, "fits": self.peak <= capacity},
    }  # fmt: skip
    if self.time:
      result["time"] = {
          **dataclasses.asdict(self.time), "step": self.time.seconds, "bound": self.time.bound,
          "tokens_per_second": self.tokens / self.time.seconds,
      }  # fmt: skip
    return result


def plan_generation(
    config: TrainConfig, target: Target, batch: int, prompt: int, new: int
) -> list[GenerationPlan]:
  """Prefill of `prompt` tokens a row, and a step of decoding when `new` of them follow."""
  tokens = {"prefill": batch * prompt, "decode": batch}
  if target.devices:
    programs = compile_generation(
        config.model, config.mesh, list(target.devices), batch, prompt, prompt + new
    )
    return [
        GenerationPlan(
            name, target, batch, tokens[name], each.peak,
            roofline(each.totals, target.chip, each.devices)
            if each.totals and target.chip.ici_dims else None,
        )
        for name, each in programs.items()
    ]  # fmt: skip
  return [_estimate(name, config, target, batch, prompt, new) for name in tokens]


def _estimate(name, config, target, batch, prompt, new) -> GenerationPlan:
  """Parameters and cache once through memory; operations by the formula; no time between GPUs."""
  model, sizes = config.model, mesh_sizes(config.mesh, target.count)
  item = 2 if model.dtype == "bfloat16" else 4
  parameters = state_bytes(config, sizes)[0] * item / 4
  shares = sizes[0] * sizes[1] * sizes[2]
  cache = 2 * model.num_layers * model.width * (prompt + new) * batch * item / shares
  number = prompt if name == "prefill" else 1
  context = prompt if name == "prefill" else 2 * (prompt + new)
  work = batch * number * flops.forward_flops_per_token(model, context) / shares
  rows = batch * number / (sizes[0] * sizes[1])
  working = rows * item * (8 * model.width + 2 * model.mlp_dim / sizes[2])
  working += rows * 4 * model.vocab_size / sizes[2]
  time = Roofline(
      work / target.chip.flops, (parameters + cache) / target.chip.hbm_bandwidth, 0.0, 0.0
  )
  peak = parameters + cache + working
  return GenerationPlan(name, target, batch, batch * number, peak, time)
