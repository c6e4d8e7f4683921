"""Runs that adapt another: what they train and keep, that they go on, and what they are worth."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_runs import assert_same_end, read_item, read_lines

from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError
from chexmix_jax.inference.model import load_model
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.models.transformer import Transformer
from chexmix_jax.parallel.mesh import MeshConfig
from chexmix_jax.training import loop
from chexmix_jax.training.base import base_dir
from chexmix_jax.training.checkpoint import read_job, saved_steps
from chexmix_jax.training.loop import train
from chexmix_jax.training.setup import TrainConfig


def adapting(config, run_dir, /, **settings):
  adapter = AdapterConfig(**{"rank": 4, "alpha": 8.0, **settings})
  model = dataclasses.replace(config.model, adapter=adapter)
  return dataclasses.replace(config, model=model, init=str(run_dir), seed=1)


@pytest.fixture(scope="session")
def adapted(config, whole_run, tmp_path_factory):
  """A DoRA with trained rows and norms, on a base in 8 bits."""
  config = adapting(
      config, whole_run, kind="dora", dropout=0.1, rows=(3, 9), train=("layers.norm.*",),
      base="int8",
  )  # fmt: skip
  folder = tmp_path_factory.mktemp("adapted") / "run"
  train(config, folder)
  return config, folder


def logits(run_dir, step=None):
  found = load_model(run_dir, step)
  assert found.config.adapter is None
  ids = np.random.default_rng(0).integers(0, found.config.vocab_size, (2, 12))
  return jax.device_get(Transformer(found.config, found.params)(ids))


def test_it_learns_and_keeps_only_what_it_trains(config, whole_run, adapted):
  _, folder = adapted
  lines = read_lines(folder)
  assert lines[-1]["loss"] < lines[0]["loss"] - 0.02
  assert lines[0]["loss"] < read_lines(whole_run)[0]["loss"] - 0.3  # It starts from the base.
  params = read_item(folder, saved_steps(folder)[-1], "params")
  assert set(params) == {"layers", "rows"} and params["rows"]["embedding"].shape == (6, 32)
  assert set(params["layers"]["attn"]["q"]) == {"lora_a", "lora_b", "magnitude"}
  assert set(params["layers"]["norm"]) == {"scale", "bias"}
  moments = read_item(folder, saved_steps(folder)[-1], "train")["opt_state"]
  assert sum(leaf.size for leaf in jax.tree.leaves(moments)) < 3 * sum(
      leaf.size for leaf in jax.tree.leaves(params)
  )
  assert read_job(folder)["base"]["step"] == saved_steps(whole_run)[-1]


def test_before_its_first_step_it_is_its_base(config, whole_run, tmp_path):
  """A step of no length leaves additions as they are at first."""
  still = dataclasses.replace(config.optimizer, learning_rate=0.0, warmup_steps=0)
  for kind in ("lora", "dora"):
    settings = dataclasses.replace(
        adapting(config, whole_run, kind=kind, rows=(3, 9)), steps=1, optimizer=still
    )
    train(settings, tmp_path / kind)
    np.testing.assert_allclose(logits(tmp_path / kind), logits(whole_run), atol=2e-5)


def test_the_merged_model_has_what_was_trained(whole_run, adapted):
  _, folder = adapted
  before, after = logits(whole_run), logits(folder)
  assert np.abs(after - before).max() > 0.1
  # Rows and norms are those that were trained.
  found = load_model(folder)
  params = read_item(folder, found.step, "params")
  table = found.params["embed"]["embedding"]
  np.testing.assert_array_equal(table[3:9], params["rows"]["embedding"])
  np.testing.assert_array_equal(
      found.params["layers"][0]["norm"]["scale"], params["layers"]["norm"]["scale"][0]
  )


def test_it_goes_on_bit_for_bit(adapted, tmp_path, monkeypatch):
  config, folder = adapted
  add = loop.MetricsWindow.add

  def interrupt(window, step, metrics):
    if step == 5:
      raise KeyboardInterrupt
    add(window, step, metrics)

  monkeypatch.setattr(loop.MetricsWindow, "add", interrupt)
  with pytest.raises(KeyboardInterrupt):
    train(config, tmp_path / "run")
  monkeypatch.undo()
  train(config, tmp_path / "run")
  assert_same_end(tmp_path / "run", folder)


@pytest.mark.parametrize("base", ["float", "int8"])
def test_other_meshes_give_the_same(config, whole_run, tmp_path, base):
  losses = []
  for mesh in (MeshConfig(8, 1, 1), MeshConfig(2, 2, 2)):
    settings = adapting(config, whole_run, base=base, kind="dora", rows=(3, 9))
    model = dataclasses.replace(settings.model, dropout=0.0)
    folder = tmp_path / str(mesh.tensor)
    train(dataclasses.replace(settings, mesh=mesh, model=model, steps=3), folder)
    losses.append([line["loss"] for line in read_lines(folder)])
  np.testing.assert_allclose(*losses, atol=1e-5)


def test_an_adapted_run_can_be_a_base(config, adapted, tmp_path):
  _, folder = adapted
  still = dataclasses.replace(config.optimizer, learning_rate=0.0, warmup_steps=0)
  settings = dataclasses.replace(adapting(config, folder), steps=1, optimizer=still)
  train(settings, tmp_path / "run")
  np.testing.assert_allclose(logits(tmp_path / "run"), logits(folder), atol=2e-5)
  other = dataclasses.replace(settings.model, mlp_dim=32)
  with pytest.raises(UserError, match="has a model of another shape"):
    train(dataclasses.replace(settings, model=other), tmp_path / "other")


def test_full_training_from_a_base_is_as_before(config, whole_run, tmp_path):
  settings = dataclasses.replace(config, init=str(whole_run), steps=2, checkpoint_every=1)
  train(settings, tmp_path / "run")
  params = read_item(tmp_path / "run", 2, "params")
  assert "lora_a" not in params["layers"]["attn"]["q"] and "base" not in read_job(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": ("layers.nrom.*",)}, r"'layers\.nrom\.\*', which matches no parameter"),
        ({"train": ("layers.mlp.*",), "base": "int8"}, "is quantised and cannot be trained"),
        ({"rank": 99}, r"adapter\.rank=99 is above the 32 of attn\.q"),
        ({"rows": (3, 10_000)}, r"adapter\.rows=.* go beyond"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    config, whole_run, tmp_path, settings, message
):
  with pytest.raises(UserError, match=message):
    train(adapting(config, whole_run, **settings), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_base_and_adamw_are_needed_and_the_base_is_the_same(config, whole_run, adapted, tmp_path):
  with pytest.raises(UserError, match=r"init is empty, but model\.adapter adapts a model"):
    train(dataclasses.replace(adapting(config, whole_run), init=""), tmp_path / "run")
  optimizer = dataclasses.replace(config.optimizer, name="muon")
  with pytest.raises(UserError, match=r"model\.adapter trains none of them; set it to 'adamw'"):
    run = dataclasses.replace(adapting(config, whole_run), optimizer=optimizer)
    train(run, tmp_path / "run")
  _, folder = adapted
  job = read_job(folder)
  copy = tmp_path / "copy"
  copy.mkdir()
  (copy / "checkpoints").symlink_to(folder / "checkpoints", target_is_directory=True)
  for base, message in (
      (tmp_path / "gone", "is not a run directory"),
      (folder, "is not the base that was adapted"),
  ):
    job["train"]["init"] = str(base)
    (copy / "job.json").write_text(json.dumps(job))
    with pytest.raises(UserError, match=message):
      load_model(copy)


def test_a_relative_base_is_found_above_the_run_wherever_one_stands(
    whole_run, adapted, tmp_path, monkeypatch
):
  _, folder = adapted
  place = tmp_path / "moved" / "mine" / "run"
  place.mkdir(parents=True)
  (tmp_path / "moved" / "base").symlink_to(whole_run, target_is_directory=True)
  (place / "checkpoints").symlink_to(folder / "checkpoints", target_is_directory=True)
  job = read_job(folder)
  job["train"]["init"] = "moved/base"
  (place / "job.json").write_text(json.dumps(job))
  monkeypatch.chdir("/")
  assert base_dir(place) == tmp_path / "moved" / "base"
  job["train"]["init"] = "elsewhere/base"
  (place / "job.json").write_text(json.dumps(job))
  with pytest.raises(UserError, match="elsewhere/base is not a run directory"):
    load_model(place)


def test_the_config_reads_from_a_file(adapted):
  config, _ = adapted
  assert config_lib.build(TrainConfig, config_lib.to_dict(config)) == config
