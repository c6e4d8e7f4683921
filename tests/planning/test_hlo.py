"""What is read from compiled programs, against XLA's own count where that is right, and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.models import flops
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import named_sharding
from chexmix_jax.planning import hlo
from chexmix_jax.planning.compile import compile_step


def compiled(tpus, function, *arrays, sizes=(1, 4, 1)):
  """A program for four TPUs; arrays are (shape, axes) in float32."""
  mesh = make_mesh(MeshConfig(*sizes), tpus.devices)
  arguments = [
      jax.ShapeDtypeStruct(shape, jnp.float32, sharding=named_sharding(mesh, axes))
      for shape, axes in arrays
  ]
  with jax.set_mesh(mesh):
    return jax.jit(function).lower(*arguments).compile()


def test_an_unrolled_program_has_the_operations_that_xla_counts(tpus):
  def function(x, w):
    for _ in range(3):
      x = jax.nn.gelu(x @ w)
    return x.sum()

  program = compiled(tpus, jax.grad(function, 1), ((512, 256), (None, None)),
                     ((256, 256), (None, None)))  # fmt: skip
  ours = hlo.totals(program.as_text(), 4)
  # XLA also counts what is not a product, which is little here.
  assert ours.flops == pytest.approx(program.cost_analysis()["flops"], rel=0.05)
  assert ours.flops == 2 * 512 * 256 * 256 * 8


def test_a_loop_counts_as_often_as_it_turns(tpus):
  def step(x, w):
    return jnp.tanh(x @ w), None

  def scanned(x, w):
    return jax.lax.scan(step, x, w)[0]

  program = compiled(tpus, scanned, ((512, 256), (None, None)), ((7, 256, 256), (None,) * 3))
  ours = hlo.totals(program.as_text(), 4)
  assert ours.flops == 7 * 2 * 512 * 256 * 256
  # Each turn reads at least its own matrix, and never all seven.
  matrix = 4 * 256 * 256
  assert 7 * matrix <= ours.bytes < 7 * (matrix + 8 * 4 * 512 * 256)
  # XLA's own count takes the body once.
  assert program.cost_analysis()["flops"] < 0.2 * ours.flops


def test_a_scanned_model_does_what_an_unrolled_one_does(small, compiled_small, tpus):
  unrolled = dataclasses.replace(small.model, scan_layers=False)
  unrolled = compile_step(dataclasses.replace(small, model=unrolled), tpus.devices).totals
  assert compiled_small.totals.flops == pytest.approx(unrolled.flops, rel=0.01)


def test_a_training_step_has_the_operations_of_the_formula_and_what_is_computed_again(
    small, compiled_small
):
  rows, heads, length, layers = 4, 2, 256, 3
  tokens = rows * length
  # The formula without attention, which splash computes in whole lanes of 128: with remat two
  # products forward twice, and seven backward, each of half of the square.
  dense = flops.train_flops_per_token(small.model, 0) * tokens
  attention = layers * (2 + 2 + 3 + 4) * rows * heads * length**2 * 128
  # Computed again: all products of a layer but the two whose output nothing needs.
  again = layers * 2 * tokens * (3 * 256**2 + 256 * 1024)
  assert compiled_small.totals.flops == pytest.approx(dense + attention + again, rel=0.01)


@pytest.mark.parametrize(
    ("axes_in", "axes_out", "kind", "sent"),
    [
        (("batch", None), (None, None), "all-gather", 3 / 4),
        (("batch", None), (None, "embed"), "all-to-all", 3 / 16),
    ],
)
def test_a_collective_sends_what_a_ring_sends(tpus, axes_in, axes_out, kind, sent):
  mesh = make_mesh(MeshConfig(1, 4, 1), tpus.devices)
  x = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=named_sharding(mesh, axes_in))
  with jax.set_mesh(mesh):
    program = jax.jit(lambda x: x, out_shardings=named_sharding(mesh, axes_out)).lower(x).compile()
  (one,) = hlo.totals(program.as_text(), 4).collectives
  assert (one.kind, one.group, one.count) == (kind, (0, 1, 2, 3), 1)
  assert one.bytes == sent * 4 * 512 * 512


def test_a_sum_over_devices_is_sent_twice(tpus):
  mesh = make_mesh(MeshConfig(2, 2, 1), tpus.devices)
  program = compiled(tpus, lambda x: x.sum(axis=0), ((8, 4096), ("embed", None)),
                     sizes=(2, 2, 1))  # fmt: skip
  (one,) = hlo.totals(program.as_text(), mesh.size).collectives
  assert one.kind == "all-reduce" and len(one.group) == 2
  assert one.bytes == 2 * 1 / 2 * 4 * 4096


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("source_target_pairs={{0,3},{3,0}}", (0, 3)),
        ("channel_id=1", tuple(range(8))),
    ],
)
def test_the_ways_to_write_a_group(text, group):
  reader = hlo._Reader("", 8)
  assert reader._group(", " + text + ", use_global_device_ids=true") == group


def test_padding_of_a_window_is_no_operation():
  text = """ENTRY %main (a: f32[1,64,32], b: f32[32,32,80]) -> f32[1,64,32,80] {
  %a = f32[1,64,32]{2,1,0} parameter(0)
  %b = f32[32,32,80]{2,1,0} parameter(1)
  ROOT %c = f32[64,32,80]{2,1,0} convolution(%a, %b), window={size=32 pad=31_31 rhs_reversal=1}, dim_labels=0bf_0io->b0f
}
"""  # noqa: E501
  # One picture of a single place: of 32 windows each meets it once.
  assert hlo.totals(text, 1).flops == 2 * 64 * 32 * 32 * 80
  assert np.isfinite(hlo.totals(text, 1).bytes)
