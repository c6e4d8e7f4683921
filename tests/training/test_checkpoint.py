"""A run directory: its job, and checkpoints that come back bit for bit on any mesh."""

import dataclasses
import json
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.models.unstack import unstack_layers
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.training.checkpoint import (
  Checkpoints,
  load_params,
  read_job,
  saved_steps,
  write_job,
)
from chexmix_jax.training.optimizer import OptimizerConfig, make_optimizer
from chexmix_jax.training.step import abstract_state

MODEL = TransformerConfig(
    vocab_size=64, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4
)
OPTIMIZER = make_optimizer(OptimizerConfig(), 10)


def make_iterator():
  return iter(grain.MapDataset.range(100).to_iter_dataset())


def save(run_dir, *mesh, taken=3, step=4):
  """Saves a state whose every leaf is random, but for its step; returns it."""
  abstract = abstract_state(MODEL, OPTIMIZER, make_mesh(MeshConfig(*mesh)))
  rng = np.random.default_rng(0)
  state = jax.tree.map(
      lambda x: jax.device_put((7 * rng.random(x.shape)).astype(x.dtype), x.sharding), abstract
  )
  step = jax.device_put(np.int32(step), state.step.sharding)
  state = dataclasses.replace(state, step=step)
  iterator = make_iterator()
  for _ in range(taken):
    next(iterator)
  checkpoints = Checkpoints(run_dir)
  validation = {"best": int(step), "stopped": False, "lines": []}
  checkpoints.save(state, iterator, {"rows": [{"loss": 0.1 * taken}]}, validation)
  checkpoints.close()
  return state


def restore(run_dir, *mesh):
  iterator = make_iterator()
  checkpoints = Checkpoints(run_dir)
  try:
    abstract = abstract_state(MODEL, OPTIMIZER, make_mesh(MeshConfig(*mesh)))
    state, window, validation = checkpoints.restore(abstract, iterator)
    assert validation["best"] == state.step
    assert window == {"rows": [{"loss": 0.1 * iterator.get_state()["next_index"]}]}
    return state, abstract, iterator
  finally:
    checkpoints.close()


def assert_same(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  for (path, a), b in zip(
      jax.tree_util.tree_flatten_with_path(tree)[0], jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype, path
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def test_state_and_data_position_come_back(tmp_path):
  state = save(tmp_path)
  assert saved_steps(tmp_path) == [int(state.step)]
  restored, _, iterator = restore(tmp_path)
  assert_same(restored, state)
  assert next(iterator) == 3


@pytest.mark.parametrize(("saved", "wanted"), [((1, 1, 1), (2, 2, 2)), ((2, 2, 2), (1, 4, 2))])
def test_a_checkpoint_comes_back_on_another_mesh(tmp_path, saved, wanted):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  state = save(tmp_path, *saved)
  restored, abstract, _ = restore(tmp_path, *wanted)
  assert_same(restored, state)
  for leaf, shape in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
    assert leaf.sharding == shape.sharding
  kernel = restored.params["layers"]["mlp"]["up"]["kernel"]
  assert kernel.addressable_shards[0].data.size < kernel.size


def test_parameters_alone_come_back(tmp_path):
  state = save(tmp_path)
  abstract = abstract_state(MODEL, OPTIMIZER, make_mesh()).params
  params, step = load_params(tmp_path, abstract)
  assert step == int(state.step)
  assert_same(params, state.params)
  assert_same(load_params(tmp_path, abstract, step)[0], state.params)
  apart, _ = load_params(tmp_path, abstract, layers_apart=True)
  assert_same(apart, unstack_layers(jax.tree.map(jnp.copy, state.params)))


def test_the_oldest_checkpoints_are_dropped_and_a_broken_one_is_not_counted(tmp_path):
  for name in ("4", "10", "5.orbax-checkpoint-tmp-1"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert saved_steps(tmp_path) == [4, 10]
  assert saved_steps(tmp_path / "nothing") == []


def cut_arrays(folder):
  for path in folder.glob("params/**/d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut(name):
  def damage(folder):
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(text[: len(text) // 2])

  return damage


DAMAGES = {
    "arrays": cut_arrays,
    "manifest": lambda folder: (folder / "params" / "manifest.ocdbt").unlink(),
    "metadata": cut("params/_METADATA"),
    "optimizer": lambda folder: shutil.rmtree(folder / "train"),
    "position": cut("data/metadata"),
    "validation": cut("validation/metadata"),
    "everything": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path, capfd, damage):
  state = save(tmp_path, step=4)
  save(tmp_path, step=6, taken=5)
  folder = tmp_path / "checkpoints" / "6"
  DAMAGES[damage](folder)
  capfd.readouterr()
  restored, _, iterator = restore(tmp_path)
  assert_same(restored, state)
  assert next(iterator) == 3
  said = capfd.readouterr().err
  assert f"WARNING: {folder} cannot be read" in said and len(said) < 1000
  # The step can be saved again, and what was there is still there.
  assert saved_steps(tmp_path) == [4]
  assert (tmp_path / "checkpoints" / "6.unreadable1").is_dir()
  again = save(tmp_path, step=6)
  assert saved_steps(tmp_path) == [4, 6]
  assert_same(restore(tmp_path)[0], again)


def test_parameters_of_a_checkpoint_that_can_be_read_are_loaded(tmp_path, capfd):
  state = save(tmp_path, step=4)
  save(tmp_path, step=6)
  cut_arrays(tmp_path / "checkpoints" / "6")
  abstract = abstract_state(MODEL, OPTIMIZER, make_mesh()).params
  params, step = load_params(tmp_path, abstract)
  assert step == 4
  assert_same(params, state.params)
  assert f"{tmp_path / 'checkpoints' / '6'} cannot be read" in capfd.readouterr().err
  with pytest.raises(UserError, match="no checkpoint that can be read"):
    load_params(tmp_path, abstract, 6)
  assert saved_steps(tmp_path) == [4, 6]


def test_checkpoints_none_of_which_can_be_read_are_left_as_they_are(tmp_path):
  for step in (4, 6):
    save(tmp_path, step=step)
    (tmp_path / "checkpoints" / str(step) / "train" / "manifest.ocdbt").unlink()
  with pytest.raises(UserError, match=r"tried those of step 4, 6:"):
    restore(tmp_path)
  assert saved_steps(tmp_path) == [4, 6]


def test_a_checkpoint_that_was_cut_short_is_removed_with_a_warning(tmp_path, capfd):
  save(tmp_path)
  partial = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
  (partial / "params.orbax-checkpoint-tmp").mkdir(parents=True)
  restore(tmp_path)
  assert f"{partial} is a checkpoint whose saving was cut short" in capfd.readouterr().err
  assert not partial.exists()


def test_a_checkpoint_of_another_shape_is_named(tmp_path):
  save(tmp_path)
  abstract = abstract_state(MODEL, OPTIMIZER, make_mesh()).params
  smaller = {**abstract, "lm_head": {"kernel": abstract["lm_head"]["kernel"]}}
  with pytest.raises(UserError, match=r"it also holds lm_head\.bias"):
    load_params(tmp_path, smaller)
  other = jax.ShapeDtypeStruct((65,), "float32")
  with pytest.raises(UserError, match=r"lm_head\.bias is not \(65,\)"):
    load_params(tmp_path, {**abstract, "lm_head": {**abstract["lm_head"], "bias": other}})


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match="run has no checkpoint; train it first"):
    load_params(tmp_path / "run", {})
  assert not (tmp_path / "run").exists()
  state = save(tmp_path / "run")
  with pytest.raises(UserError, match=f"no checkpoint of step 99; it has {int(state.step)}"):
    load_params(tmp_path / "run", {}, 99)


def test_the_job_is_written_once_and_names_what_differs(tmp_path):
  job = {"train": {"steps": 3, "model": {"widths": (1, 2)}}, "tokens": {"a": 1}}
  write_job(tmp_path / "run", job)
  write_job(tmp_path / "run", job)
  assert read_job(tmp_path / "run") == json.loads(json.dumps(job))
  job["train"] = {"steps": 4, "model": {"widths": (1, 3)}}
  with pytest.raises(UserError, match=r"another train\.model\.widths, train\.steps;"):
    write_job(tmp_path / "run", job)
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["job.json"]


def test_a_folder_without_a_job_is_no_run(tmp_path):
  with pytest.raises(UserError, match="not a run directory"):
    read_job(tmp_path)
  (tmp_path / "job.json").write_text('{"train":')
  with pytest.raises(UserError, match=r"job\.json is damaged"):
    read_job(tmp_path)
