"""AdamW or Muon, with warm-up and cosine decay."""

import dataclasses
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers

MomentDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer and its schedule.

  Attributes:
    name: AdamW (Loshchilov and Hutter 2019), or Muon (Jordan et al. 2024) for the kernels of the
      layers with AdamW for the rest. Muon's updates are scaled to the size of AdamW's (Liu et al.
      2025, arXiv 2502.16982), so that one learning rate serves both.
    learning_rate: peak, reached after `warmup_steps` of linear warm-up.
    end_fraction: of the peak, where the cosine ends at the last step.
    weight_decay: on matrices only; biases and norms are never decayed.
    clip_norm: bound on the gradient's global norm.
    moment_dtype: of the first moment; in bfloat16 it takes half of the memory.
  """

  name: Literal["adamw", "muon"] = "adamw"
  learning_rate: float = 3e-4
  warmup_steps: int = 100
  end_fraction: float = 0.1
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float = 1.0
  moment_dtype: MomentDtype = "float32"


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by step, over a run of `steps` steps."""
  return optax.warmup_cosine_decay_schedule(
      init_value=0.0,
      peak_value=config.learning_rate,
      warmup_steps=config.warmup_steps,
      decay_steps=max(steps, config.warmup_steps + 1),
      end_value=config.learning_rate * config.end_fraction,
  )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Clipping, then the optimizer on the schedule."""
  return optimizer_on(config, learning_rate_schedule(config, steps))


def optimizer_on(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """The same on any schedule."""
  optimizer = optax.adamw(
      schedule,
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
      mask=_is_matrix,
      mu_dtype=config.moment_dtype,
  )
  if config.name == "muon":
    muon = optax.contrib.muon(
        schedule,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=config.moment_dtype,
        muon_weight_dimension_numbers=_muon_dimensions,
        consistent_rms=_ADAM_RMS,
    )
    # Not muon's own way with the rest, which is Adam with Nesterov's momentum and decays biases.
    optimizer = optax.partition({"muon": muon, "adamw": optimizer}, _by_optimizer)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


# The usual root mean square of an AdamW update, over the learning rate (Liu et al. 2025).
_ADAM_RMS = 0.2


def _is_matrix(params: Any) -> Any:
  matrices = ("kernel", "embedding", "lora_a", "lora_b")
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)


def _by_optimizer(params: Any) -> Any:
  """The optimizer of each parameter."""
  return jax.tree.map(
      lambda numbers: "muon" if numbers else "adamw",
      _muon_dimensions(params),
      is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
  )


def _muon_dimensions(params: Any) -> Any:
  """Which axes of the layers' stacked kernels are the input's and the output's; None elsewhere."""

  def dimensions(path: Any, _: Any) -> MuonDimensionNumbers | None:
    if path[0].key != "layers" or path[-1].key != "kernel":
      return None
    if path[1].key == "mlp":
      return MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
    if path[2].key == "out":
      return MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=(3,))
    return MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 3))

  return jax.tree_util.tree_map_with_path(dimensions, params)
