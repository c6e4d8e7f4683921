"""The range test of the learning rate, on a loss whose limits are known and on a tiny run."""

import csv
import math

import numpy as np
import pytest
from small_runs import write_config

from chexmix_jax import find_learning_rate
from chexmix_jax.errors import UserError
from chexmix_jax.training.learning_rate import rate_of, run_range_test, smooth


def descent(curvatures, low, high, steps):
  """Gradient descent on sum(h w² / 2) from ones, whose rates rise; gives the loss of each step."""
  weights, done = np.ones(len(curvatures)), 0

  def step():
    nonlocal weights, done
    loss = float((curvatures * weights**2).sum() / 2)
    weights = weights - rate_of(done, low, high, steps) * curvatures * weights
    done += 1
    return loss

  return step


def test_on_a_quadratic_the_rate_suggested_lies_below_where_it_diverges():
  curvatures = np.array([1.0, 4.0, 10.0])
  found = run_range_test(descent(curvatures, 1e-5, 100.0, 140), 1e-5, 100.0, 140)
  # A direction of curvature h diverges from 2 / h on.
  assert found.has_diverged and found.has_fallen and len(found.rates) < 140
  assert 0.05 < found.rates[found.least] < 1
  assert found.rates[found.steepest] < found.rates[found.least]
  assert found.suggested == pytest.approx(found.rates[found.least] / 10)
  assert 0.005 < found.suggested < 0.2
  np.testing.assert_allclose(np.diff(np.log(found.rates)), math.log(1e7) / 139)


def test_it_ends_where_a_loss_is_not_finite():
  losses = iter([3.0, 2.0, 1.0, math.nan, 1.0])
  found = run_range_test(lambda: next(losses), 1e-3, 1.0, 20)
  assert found.has_diverged and found.losses.tolist() == [3.0, 2.0, 1.0]
  with pytest.raises(UserError, match=r"not finite at a learning rate of 0\.001"):
    run_range_test(lambda: math.inf, 1e-3, 1.0, 20)


def test_what_never_falls_is_said():
  rng = np.random.default_rng(0)
  found = run_range_test(lambda: 2 + 0.1 * rng.normal(), 1e-3, 1.0, 60)
  assert not found.has_fallen and not found.has_diverged


def test_means_are_centred():
  np.testing.assert_allclose(smooth(np.array([0.0, 3.0, 6.0, 0.0]), 1), [1.5, 3.0, 3.0, 3.0])


def test_the_command_tries_rates_on_a_run_and_leaves_none(config, tmp_path, capsys):
  write_config(config, tmp_path / "config.py")
  command = [f"--config={tmp_path / 'config.py'}", f"--output={tmp_path / 'out'}"]
  find_learning_rate.main([*command, "--low=1e-5", "--high=100", "--steps=60"])
  said = capsys.readouterr().out
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
      "learning_rates.csv", "learning_rates.png",
  ]  # fmt: skip
  with (tmp_path / "out" / "learning_rates.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert float(rows[0]["learning_rate"]) == pytest.approx(1e-5)
  assert len(rows) < 60 and "the loss was lost" in said  # It diverges.
  (suggested,) = (line for line in said.splitlines() if line.startswith("--config.optimizer"))
  assert 1e-4 < float(suggested.split("=")[1]) < 1e-1
  for wrong in ("--low=0", "--high=1e-9", "--steps=2"):
    with pytest.raises(UserError, match="The rates must rise"):
      find_learning_rate.main([*command, wrong])
