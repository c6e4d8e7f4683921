"""The table of axes covers every parameter and refuses what it cannot divide."""

import jax
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import TransformerConfig, abstract_params
from chexmix_jax.parallel import sharding as sharding_lib
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import check_sharded, param_shardings


def test_every_parameter_of_the_published_model_is_in_the_table():
  config = TransformerConfig(qk_norm=True)
  shardings = param_shardings(make_mesh(MeshConfig(1, 1, 1)), abstract_params(config))
  assert jax.tree.structure(shardings) == jax.tree.structure(abstract_params(config))


def test_large_matrices_are_split_over_fsdp_and_tensor():
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  params = abstract_params(TransformerConfig())
  shardings = param_shardings(make_mesh(MeshConfig(2, 2, 2)), params)
  for (path, leaf), sharding in zip(
      jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(shardings), strict=True
  ):
    if path[-1].key in ("kernel", "embedding"):
      shard = sharding.shard_shape(leaf.shape)
      assert 4 * int(jax.numpy.prod(jax.numpy.array(shard))) == int(
          jax.numpy.prod(jax.numpy.array(leaf.shape))
      ), path


def test_a_size_that_cannot_be_divided_is_named():
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  config = TransformerConfig(vocab_size=101, num_layers=1, width=32, num_heads=4, mlp_dim=64,
                             rotary_dim=4)
  with pytest.raises(UserError, match=r"embed\.embedding.*'vocab' axis of 101"):
    param_shardings(make_mesh(MeshConfig(2, 2, 2)), abstract_params(config))


def test_an_unknown_parameter_is_named():
  with pytest.raises(UserError, match=r"layers\.extra"):
    param_shardings(make_mesh(), {"layers": {"extra": jax.ShapeDtypeStruct((2,), "float32")}})


@pytest.mark.parametrize("sizes", [(-1, 16, 1), (-1, -1, 1), (0, 1, 1), (64, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
  with pytest.raises(UserError, match="mesh"):
    make_mesh(MeshConfig(*sizes))


def test_two_axes_of_a_parameter_on_one_mesh_axis_are_refused(monkeypatch):
  monkeypatch.setitem(sharding_lib.RULES, "mlp", ("fsdp",))
  with pytest.raises(UserError, match=r"two axes of parameter layers\.mlp\.up.*'fsdp'"):
    param_shardings(make_mesh(), abstract_params(TransformerConfig()))


def test_a_rule_for_an_axis_that_the_mesh_lacks_is_refused(monkeypatch):
  monkeypatch.setitem(sharding_lib.RULES, "mlp", ("expert",))
  with pytest.raises(UserError, match="'mlp' to 'expert', which the mesh lacks"):
    param_shardings(make_mesh(), abstract_params(TransformerConfig()))


def test_a_parameter_that_is_not_shared_out_is_named():
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  mesh = make_mesh(MeshConfig(1, 8, 1))
  whole = jax.device_put(
      {"lm_head": {"kernel": jax.numpy.ones((16, 8))}},
      jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
  )
  with pytest.raises(UserError, match=r"holds \(16, 8\) of parameter lm_head\.kernel.*\(2, 8\)"):
    check_sharded(mesh, whole)
  check_sharded(mesh, jax.device_put(whole, param_shardings(mesh, whole)))
