"""The schedule's corners, the clipping, AdamW's arithmetic and Muon's matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chexmix_jax.models.transformer import TransformerConfig, abstract_params, init_params
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)
from chexmix_jax.training.step import abstract_state

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


MODEL = TransformerConfig(
    vocab_size=64, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4, qk_norm=True
)
MUON = OptimizerConfig(name="muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.0)
# Kernel -> its shape as a matrix from input to output, in each layer.
MATRICES = {
    ("attn", "q"): (32, 32), ("attn", "k"): (32, 32), ("attn", "v"): (32, 32),
    ("attn", "out"): (32, 32), ("mlp", "up"): (32, 64), ("mlp", "down"): (64, 32),
}  # fmt: skip


def test_muon_makes_every_layers_update_orthogonal_and_of_adamws_size():
  params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  grads = jax.tree.unflatten(
      tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  )
  optimizer = make_optimizer(MUON, 10)
  updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
  for (group, name), shape in MATRICES.items():
    pair = (tree["layers"][group][name]["kernel"] for tree in (updates, grads))
    for update, gradient in zip(*pair, strict=True):
      # Newton-Schulz leaves singular values of 0.68 to 1.13 (Jordan et al. 2024), tiny ones less.
      spread, spread_before = (_spread(np.reshape(x, shape)) for x in (update, gradient))
      assert spread < 1.13 / 0.68 < spread_before, (group, name)
      assert 0.68 < np.sqrt(np.mean(update**2)) / (0.2 * 0.1) < 1.13, (group, name)
  # All else gets AdamW's first step.
  norm = optax.tree.norm(grads)  # The clipping makes it 1.
  for found, gradient in (
      (updates["embed"]["embedding"], grads["embed"]["embedding"]),
      (updates["lm_head"]["kernel"], grads["lm_head"]["kernel"]),
      (updates["layers"]["norm"]["scale"], grads["layers"]["norm"]["scale"]),
  ):
    clipped = gradient / norm
    np.testing.assert_allclose(found, -0.1 * clipped / (abs(clipped) + 1e-8), rtol=1e-4)


def test_muon_decays_matrices_and_never_biases_or_norms():
  optimizer = make_optimizer(
      OptimizerConfig(name="muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.5), 10
  )
  params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), abstract_params(MODEL))
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
  for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
    expected = -0.5 if path[-1].key in ("kernel", "embedding") else 0.0
    np.testing.assert_allclose(update, expected, err_msg=str(path))


def _spread(matrix):
  singular = np.linalg.svd(matrix, compute_uv=False)
  return singular.max() / np.median(singular)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_sharded_as_their_parameters(name):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  mesh = make_mesh(MeshConfig(2, 2, 2))
  state = abstract_state(MODEL, make_optimizer(OptimizerConfig(name=name), 10), mesh)
  kernel = state.params["layers"]["mlp"]["up"]["kernel"].sharding
  embedding = state.params["embed"]["embedding"].sharding
  found = {"up": 0, "embedding": 0}
  for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]:
    keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    if keys[-3:] == ["mlp", "up", "kernel"]:
      assert leaf.sharding == kernel
      found["up"] += 1
    elif keys[-1:] == ["embedding"]:
      assert leaf.sharding == embedding
      found["embedding"] += 1
  # Muon keeps one moment of a kernel, AdamW two.
  assert found == {"up": 1 if name == "muon" else 2, "embedding": 2}
