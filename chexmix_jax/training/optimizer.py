"""AdamW with warm-up and cosine decay."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW (Loshchilov and Hutter 2019) and its schedule.

  Attributes:
    learning_rate: peak, reached after `warmup_steps` of linear warm-up.
    end_fraction: of the peak, where the cosine ends at the last step.
    weight_decay: on matrices only; biases and norms are never decayed.
    clip_norm: bound on the gradient's global norm.
  """

  learning_rate: float = 3e-4
  warmup_steps: int = 100
  end_fraction: float = 0.1
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float = 1.0


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
  """Clipping, then AdamW on the schedule."""

  def is_matrix(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )

  return optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adamw(
          learning_rate_schedule(config, steps),
          b1=config.b1,
          b2=config.b2,
          eps=config.eps,
          weight_decay=config.weight_decay,
          mask=is_matrix,
      ),
  )
