"""Which ways to fine-tune fit which card: the ways, their configs, and what is printed of peaks."""

import dataclasses
import json
import types

import pytest

from chexmix_jax import plan
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.parallel.hardware import CHIPS
from chexmix_jax.parallel.mesh import MeshConfig
from chexmix_jax.planning import cards
from chexmix_jax.planning.cards import CARDS, Peak, Way, configure, nearest, way_of, ways

GIB = 2**30


def adapted(small, **changes):
  model = dataclasses.replace(small.model, adapter=AdapterConfig(rank=4, base="int8"))
  return dataclasses.replace(small, model=model, **changes)


def test_the_ways_have_the_configs_own_among_them(small):
  found = ways(adapted(small, accumulation=2))
  assert found[:3] == [Way("float", "float32", rows) for rows in (1, 4, 8)]
  assert len(found) == len(set(found)) == 15
  assert way_of(adapted(small, accumulation=2)) == Way("int8", "float32", 8) in found
  assert way_of(small) == Way(None, "float32", 16) in ways(small)


def test_a_way_changes_what_it_names_and_is_for_one_device(small):
  own = adapted(small)
  for way in ways(own):
    config = configure(own, way)
    assert way_of(config) == way
    assert config.mesh == MeshConfig(1, 1, 1) and config.model.attention == "xla"
    assert config.data == own.data
  assert configure(own, Way("int4", "float32", 1)).model.adapter.rank == 4
  whole = configure(own, Way(None, "bfloat16", 4))
  assert whole.optimizer.moment_dtype == "bfloat16" and whole.accumulation == 4


def test_a_card_of_each_size_is_one_of_the_table():
  sizes = [CHIPS[kind].hbm_bytes / GIB for kind in CARDS.values()]
  for name, size in zip(CARDS, sizes, strict=True):
    assert 0.93 < size / int(name.split()[0]) <= 1


def test_the_nearest_way_keeps_what_is_trained_before_how_it_is_held(small):
  own = Way(None, "float32", 4)
  peaks = [
      Peak(Way("float", "float32", 4), 5 * GIB), Peak(Way("int4", "float32", 4), 3 * GIB),
      Peak(Way(None, "bfloat16", 1), 40 * GIB), Peak(Way(None, "float32", 1), 42 * GIB),
      Peak(own, 60 * GIB),
  ]  # fmt: skip
  assert nearest(peaks, own, "80 GB") == own
  assert nearest(peaks, own, "48 GB") == Way(None, "bfloat16", 1)  # 42 are more than 0.9 of 45.
  assert nearest(peaks, own, "12 GB") == Way("float", "float32", 4)
  assert nearest(peaks[-1:], own, "12 GB") is None


@pytest.fixture
def printed(config_file, capsys, monkeypatch):
  """What the command prints where every way needs 10 GiB and everything 100."""

  def compiled(config, target):
    assert target.name == cards.TOPOLOGY
    size = 10.0 if config.model.adapter else 100.0
    return types.SimpleNamespace(memory=types.SimpleNamespace(total=size * GIB))

  def run(*more):
    plan.main([f"--config={config_file}", "--topology=cards", "--config.accumulation=4", *more])
    return capsys.readouterr().out

  monkeypatch.setattr(cards, "plan_training", compiled)
  return run


def test_the_table_tells_fits_from_fits_with_more_of_the_card(tpus, printed):
  lines = printed().splitlines()
  assert lines[0].split() == ["peak", "12", "GB", "16", "GB", "24", "GB", "48", "GB", "80", "GB"]
  (row,) = (line for line in lines if line.startswith("adapter on int4 base, 4 rows"))
  # Of 12 GB 10 GiB are 83 %: more than jax takes by itself.
  assert row.split("GiB")[1].split() == ["17%*", "37%", "56%", "78%", "87%"]
  (row,) = (line for line in lines if line.startswith("everything, first moment bfloat16, 1 row "))
  assert row.split("GiB")[1].split() == ["no"] * 5
  assert "for GPUs an estimate, not measured on one" in "\n".join(lines)
  assert lines[-1] == (
      "80 GB: the config does not fit; the nearest: model.adapter.base=float, accumulation=4"
  )


def test_json_has_the_same(tpus, printed):
  found = json.loads(printed("--json"))
  assert found["own"] == "everything, first moment float32, 4 rows at a time"
  card = found["cards"]["16 GB"]
  assert card["fits"]["adapter on float base, 1 row at a time"] and not card["fits"][found["own"]]
  assert card["free"][found["own"]] == pytest.approx(1 - 100 * GIB / CHIPS["RTX4080"].hbm_bytes)
  assert card["nearest"]["settings"] == "model.adapter.base=float, accumulation=4"


def test_it_goes_without_what_is_for_other_targets(config_file, capsys):
  with pytest.raises(SystemExit):
    plan.main([f"--config={config_file}", "--topology=cards", "--search"])
  assert "--topology=cards goes without --search" in capsys.readouterr().err
