"""The training step: its loss, its accumulation and its sharding."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from chexmix_jax.models.transformer import (
    Transformer,
    TransformerConfig,
    abstract_params,
    init_params,
)
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.optimizer import OptimizerConfig, make_optimizer
from chexmix_jax.training.step import (
    abstract_state,
    cross_entropy_sums,
    init_state,
    jit_train_step,
)

VOCABULARY = Vocabulary.sentencepiece(59, 60)
MODEL = TransformerConfig(
    vocab_size=VOCABULARY.size, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4,
    dropout=0.1,
)  # fmt: skip
STEPS = 20
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=3), STEPS)


def make_batches(number, rows=8, length=32):
  rng = np.random.default_rng(0)
  for _ in range(number):
    tokens = rng.integers(0, 100, (rows, length + 1), np.int32)
    split = rng.integers(8, 24, (rows, 1))
    slots = np.broadcast_to(np.arange(length), (rows, length))
    yield {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.where(slots < split, slots, slots - split).astype(np.int32),
        "segment_ids": np.where(slots < split, 1, 2).astype(np.int32),
        "weights": rng.random((rows, length), np.float32) * (slots % 5 > 0),
    }


def run(mesh_config, model=MODEL, accumulation=1, steps=STEPS, optimizer=OPTIMIZER, **shape):
  mesh = make_mesh(mesh_config)
  with jax.set_mesh(mesh):
    abstract = abstract_state(model, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = jax.jit(functools.partial(init_state, model, optimizer), out_shardings=shardings)
    state = init(jax.random.key(0))
    step = jit_train_step(model, VOCABULARY, optimizer, abstract, mesh, accumulation)
    losses = []
    for batch in make_batches(steps, **shape):
      state, metrics = step(state, batch)
      losses.append(float(metrics["loss"]))
  return losses, state


def test_eight_devices_give_the_losses_of_one():
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  one, _ = run(MeshConfig(1, 1, 1))
  eight, state = run(MeshConfig(2, 2, 2))
  np.testing.assert_allclose(eight, one, atol=1e-5, rtol=0)
  assert one[-1] < one[0] - 0.1
  kernel = state.params["layers"]["mlp"]["up"]["kernel"]
  moment = state.opt_state[1][0].mu["layers"]["mlp"]["up"]["kernel"]
  for array in (kernel, moment):
    assert array.addressable_shards[0].data.shape == (2, 16, 32)  # (L, D/fsdp, F/tensor)


def test_accumulation_equals_one_large_batch_without_dropout():
  model = dataclasses.replace(MODEL, dropout=0.0)
  # With the usual eps Adam would blow up the rounding of gradients that vanish, and the rounding of
  # a sum grows with the tokens, one by one in order as launch/test.sh has programs compiled.
  optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3, warmup_steps=3, eps=1e-3), 5)
  whole, state_whole = run(MeshConfig(1, 1, 1), model, 1, 5, optimizer, rows=4, length=16)
  parts, state_parts = run(MeshConfig(1, 1, 1), model, 4, 5, optimizer, rows=4, length=16)
  np.testing.assert_allclose(parts, whole, atol=2e-6, rtol=0)
  for a, b in zip(jax.tree.leaves(state_whole.params), jax.tree.leaves(state_parts.params),
                  strict=True):
    np.testing.assert_allclose(a, b, atol=5e-7)


@pytest.mark.parametrize(("name", "bad"), [("adamw", np.nan), ("muon", np.inf)])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(name, bad):
  optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=1e-2, warmup_steps=0), STEPS)
  mesh = make_mesh(MeshConfig(1, 1, 1))
  first, second = make_batches(2)
  second["weights"][0, 0] = bad
  with jax.set_mesh(mesh):
    state = jax.jit(init_state, static_argnums=(0, 1))(MODEL, optimizer, jax.random.key(0))
    abstract = abstract_state(MODEL, optimizer, mesh)
    step = jit_train_step(MODEL, VOCABULARY, optimizer, abstract, mesh)
    state, _ = step(state, first)
    before = jax.device_get(state)
    after, metrics = step(state, second)
  assert not np.isfinite(metrics["loss"])
  assert after.step == before.step + 1 == 2
  after = dataclasses.replace(after, step=before.step)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)


def test_loss_is_the_weighted_mean_negative_log_likelihood():
  (batch,) = make_batches(1, rows=2)
  params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(0))
  total, sums = jax.jit(functools.partial(cross_entropy_sums, MODEL, VOCABULARY))(
      params, batch, None
  )
  inputs = batch["inputs"], batch["positions"], batch["segment_ids"]
  logits = np.asarray(jax.jit(lambda *args: Transformer(MODEL, params)(*args))(*inputs), np.float64)
  log_z = np.log(np.exp(logits).sum(-1))
  nll = log_z - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
  np.testing.assert_allclose(total, (nll * batch["weights"]).sum(), rtol=1e-5)
  image = (batch["weights"] > 0) & VOCABULARY.is_image(batch["targets"])
  text = (batch["weights"] > 0) & ~VOCABULARY.is_image(batch["targets"])
  np.testing.assert_allclose(sums["image_nll"], nll[image].sum(), rtol=1e-5)
  np.testing.assert_allclose(sums["text_nll"], nll[text].sum(), rtol=1e-5)
  assert sums["image_tokens"] == image.sum() and sums["text_tokens"] == text.sum()


def test_biases_and_norms_are_not_decayed():
  optimizer = make_optimizer(
      OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.5, clip_norm=1.0), 10
  )
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract_params(MODEL))
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
  for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
    decayed = path[-1].key in ("kernel", "embedding")
    assert bool(np.any(np.asarray(update) != 0)) == decayed, path
