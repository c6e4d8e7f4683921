"""The schedule's corners, the clipping and AdamW's arithmetic."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chexmix_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)

CONFIG = OptimizerConfig(learning_rate=2.0, warmup_steps=10, end_fraction=0.1)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
  schedule = learning_rate_schedule(CONFIG, 110)
  np.testing.assert_allclose(
      [schedule(step) for step in (0, 5, 10, 60, 110, 200)],
      [0.0, 1.0, 2.0, 1.1, 0.2, 0.2],
      atol=1e-6,
  )


def test_without_warm_up_the_first_step_has_the_peak():
  schedule = learning_rate_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=0), 10)
  assert schedule(0) == pytest.approx(2.0)


def test_a_run_shorter_than_its_warm_up_only_rises():
  schedule = learning_rate_schedule(CONFIG, 4)
  rates = [float(schedule(step)) for step in range(5)]
  assert rates == sorted(rates) and rates[-1] == pytest.approx(0.8)


def test_two_steps_equal_adamw_by_hand():
  config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, end_fraction=1.0, weight_decay=0.5)
  optimizer = make_optimizer(config, 10)
  params = {"kernel": jnp.array([1.0, -2.0])}
  state = optimizer.init(params)
  expected, m, v = np.array([1.0, -2.0]), 0.0, 0.0
  for step, gradient in enumerate((np.array([3.0, 4.0]), np.array([0.3, -0.4])), start=1):
    updates, state = optimizer.update({"kernel": jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
    clipped = gradient / max(1.0, np.linalg.norm(gradient))
    m, v = 0.9 * m + 0.1 * clipped, 0.95 * v + 0.05 * clipped**2
    adam = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
    expected = expected - 0.1 * (adam + 0.5 * expected)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5)
