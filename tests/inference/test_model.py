"""A checkpoint with what is needed to use it."""

import contextlib
import dataclasses
import functools

import grain
import jax
import numpy as np
import pytest

from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError
from chexmix_jax.inference.model import load_model
from chexmix_jax.models.transformer import Transformer, TransformerConfig
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.checkpoint import Checkpoints, write_job
from chexmix_jax.training.optimizer import OptimizerConfig, make_optimizer
from chexmix_jax.training.step import abstract_state, init_state

VOCABULARY = Vocabulary.sentencepiece(num_text=30, num_codes=20)
MODEL = TransformerConfig(
    vocab_size=VOCABULARY.size, num_layers=1, width=16, num_heads=2, mlp_dim=32, rotary_dim=4
)
JOB = {
    "train": {"model": config_lib.to_dict(MODEL)},
    "tokens": {"vocabulary": VOCABULARY.to_dict()},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with checkpoints of steps 3 and 5, and the parameters of both."""
  run_dir = tmp_path_factory.mktemp("inference") / "run"
  write_job(run_dir, JOB)
  optimizer = make_optimizer(OptimizerConfig(), 10)
  shardings = jax.tree.map(
      lambda leaf: leaf.sharding, abstract_state(MODEL, optimizer, make_mesh(MeshConfig()))
  )
  init = jax.jit(functools.partial(init_state, MODEL, optimizer), out_shardings=shardings)
  params = {}
  with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
    for step in (3, 5):
      state = init(jax.random.key(step))
      state = dataclasses.replace(state, step=jax.device_put(np.int32(step), state.step.sharding))
      checkpoints.save(state, iter(grain.MapDataset.range(3).to_iter_dataset()))
      params[step] = jax.device_get(state.params)
  return run_dir, params


@pytest.mark.parametrize("asked, step", [(None, 5), (5, 5), (3, 3)])
def test_the_newest_or_the_given_checkpoint_is_loaded(run, asked, step):
  run_dir, params = run
  model = load_model(run_dir, asked)
  assert (model.step, model.config, model.vocabulary) == (step, MODEL, VOCABULARY)
  assert model.job == JOB
  jax.tree.map(np.testing.assert_array_equal, model.params, params[step])
  assert {leaf.sharding.mesh for leaf in jax.tree.leaves(model.params)} == {make_mesh()}


def test_it_can_be_used_as_it_is(run):
  model = load_model(run[0])
  logits = Transformer(model.config, model.params)(np.zeros((2, 3), np.int32))
  assert logits.shape == (2, 3, VOCABULARY.size) and np.all(np.isfinite(logits))


def test_a_checkpoint_or_folder_that_is_not_there_is_named(run, tmp_path):
  with pytest.raises(UserError, match="no checkpoint of step 4; it has 3, 5"):
    load_model(run[0], 4)
  with pytest.raises(UserError, match="not a run directory"):
    load_model(tmp_path)


def test_a_job_with_a_strange_setting_is_refused(tmp_path):
  write_job(tmp_path, {**JOB, "train": {"model": {**JOB["train"]["model"], "depth": 3}}})
  with pytest.raises(UserError, match=r"job\.json: model\.depth"):
    load_model(tmp_path)
