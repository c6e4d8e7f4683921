"""Plans of a training step: memory as the compiler has it, estimates beside it, neighbours."""

import dataclasses

import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.planning import training
from chexmix_jax.planning.estimate import estimate_memory, estimate_time, state_bytes
from chexmix_jax.planning.target import find_target
from chexmix_jax.planning.training import neighbours, plan_training, ranked


@pytest.fixture(scope="module")
def plan(small, compiled_small, tpus):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training, "compile_step", lambda *_: compiled_small)
    return plan_training(small, tpus)


def test_the_parts_of_the_memory_add_up_to_the_compilers(plan, compiled_small):
  assert plan.memory.total == compiled_small.peak
  state = plan.memory.parameters + plan.memory.optimizer
  # Arguments are the state, filled up to whole tiles, and the batch.
  batch = 16 * 256 * 5 * 4 / 4
  assert state + batch <= compiled_small.arguments < 1.3 * state + batch
  assert plan.fits


def test_the_state_is_twelve_bytes_a_parameter_shared_out(small):
  parameters, optimizer = state_bytes(small, (1, 4, 1))
  count = 2 * 1024 * 256 + 3 * (4 * 256**2 + 2 * 256 * 1024)
  assert parameters == pytest.approx(4 * count / 4, rel=0.02)
  assert optimizer == pytest.approx(2 * parameters, rel=1e-3)
  half = dataclasses.replace(
      small, optimizer=dataclasses.replace(small.optimizer, moment_dtype="bfloat16")
  )
  assert state_bytes(half, (1, 4, 1))[1] == pytest.approx(1.5 * parameters, rel=1e-3)


def test_an_adapter_has_moments_and_gradients_for_what_it_trains_alone(small):
  model = dataclasses.replace(small.model, dtype="bfloat16", adapter=AdapterConfig(rank=4))
  adapted = dataclasses.replace(small, model=model)
  frozen = 2 * (2 * 1024 * 256 + 3 * (4 * 256**2 + 2 * 256 * 1024))
  added = 4 * 3 * 4 * (4 * 2 * 256 + 2 * (256 + 1024))
  parameters, optimizer = state_bytes(adapted, (1, 1, 1))
  assert parameters == pytest.approx(frozen + added, rel=0.02)
  assert optimizer == pytest.approx(2 * added, rel=0.01)
  quantised = dataclasses.replace(model, adapter=AdapterConfig(rank=4, base="int4"))
  fewer, _ = state_bytes(dataclasses.replace(small, model=quantised), (1, 1, 1))
  layers = 3 * (4 * 256**2 + 2 * 256 * 1024)
  assert fewer == pytest.approx(parameters - layers * (2 - 0.5 - 4 / 64), rel=0.01)
  less = estimate_memory(adapted, (1, 1, 1)).total
  assert less < 0.7 * estimate_memory(small, (1, 1, 1)).total


def test_a_roofline_has_the_work_of_the_program(plan, compiled_small, tpus):
  assert plan.time.compute == compiled_small.totals.flops / 197e12
  assert plan.time.memory == compiled_small.totals.bytes / 819e9
  assert plan.time.links > 0 and plan.time.network == 0
  assert plan.time.seconds <= plan.time.seconds_without_overlap
  # A share of the peak counts nothing that is done twice.
  assert 0 < plan.mfu(plan.time.compute) < 1


def test_json_has_the_figures(plan):
  result = plan.to_dict()
  assert result["memory"]["fits"] is True
  assert result["memory"]["peak"] == plan.memory.total
  assert result["time"]["bound"] in ("compute", "memory", "links")
  assert {c["kind"] for c in result["collectives"]} >= {"all-gather", "all-reduce"}


@pytest.mark.parametrize(("change", "less"), [
    ({"remat": "none"}, "full"), ({"remat": "projections"}, "attention"),
    ({"remat": "attention"}, "full"),
])  # fmt: skip
def test_estimates_fall_with_what_is_computed_again(small, change, less):
  first, second = (
      dataclasses.replace(small, model=dataclasses.replace(small.model, remat=remat))
      for remat in (change["remat"], less)
  )
  sizes, chip = (1, 4, 1), find_target("H100:4").chip
  assert estimate_memory(first, sizes).total > estimate_memory(second, sizes).total
  times = [estimate_time(each, sizes, chip).compute for each in (first, second)]
  assert times[0] <= times[1]


def test_gpus_are_planned_by_arithmetic(small):
  plan = plan_training(small, find_target("H100:4"))
  assert plan.compiled is None and plan.fits and plan.time.seconds > 0
  assert "compile_seconds" not in plan.to_dict()


def test_neighbours_divide_what_they_share_out(small):
  target = find_target("H100:8")
  found = list(neighbours(dataclasses.replace(small, mesh=MeshConfig(1, 8, 1)), target))
  assert len(found) == len(set(found)) > 20
  for other in found:
    mesh = other.mesh
    assert mesh.data * mesh.fsdp * mesh.tensor == 8
    assert mesh.tensor <= 2  # Of two heads.
    assert 16 % (mesh.data * mesh.fsdp * other.accumulation) == 0
  assert {other.model.remat for other in found} == {"none", "projections", "attention", "full"}


def test_the_nearest_come_first(small):
  target = find_target("H100:4")
  first, second, *_ = ranked(small, target, nearest=True)
  assert first == small
  differing = [second.model.remat != "full", second.accumulation != 1, second.mesh != small.mesh]
  assert sum(differing) == 1


def test_what_does_not_fit_is_left_out(small):
  target = find_target("H100:4")
  little = dataclasses.replace(target, chip=dataclasses.replace(target.chip, hbm_bytes=2**20))
  assert ranked(small, target) and ranked(small, little) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mesh": MeshConfig(1, 2, 1)}, "idle; set one axis to -1"),
        ({"mesh": MeshConfig(1, 3, -1)}, "does not fit 4 device"),
        ({"accumulation": 8}, "must be a multiple of 32"),
    ],
)
def test_settings_that_do_not_divide_are_refused(small, change, message):
  with pytest.raises(UserError, match=message):
    plan_training(dataclasses.replace(small, **change), find_target("H100:4"))


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v9:2x2", 1, "is not known; name KIND:SHAPE"),
        ("v5e", 1, "is not known"),
        ("H100:0", 1, "number of GPUs"),
        ("H100:8", 2, "number of GPUs"),
        ("local", 1, "figures of cpu are not known"),
    ],
)
def test_an_unknown_target_is_refused(name, slices, message):
  with pytest.raises(UserError, match=message):
    find_target(name, slices)


def test_a_shape_that_there_is_not_is_refused(tpus):
  with pytest.raises(UserError, match=r"v5e:3x5 is not one that libtpu has \(.*\); mend it"):
    find_target("v5e:3x5")


def test_slices_are_joined_by_the_data_axis(tpus):
  target = find_target("v5e:2x2", slices=2)
  assert target.count == 8
  mesh = make_mesh(MeshConfig(-1, 4, 1), list(target.devices))
  assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
  for row, devices in enumerate(mesh.devices):
    assert {device.slice_index for device in devices.flat} == {row}
  with pytest.raises(UserError, match="data=1 must be a multiple of the 2 slices"):
    make_mesh(MeshConfig(1, 8, 1), list(target.devices))
