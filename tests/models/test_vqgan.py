"""The VQGAN against the PyTorch implementation's own outputs, and its invariants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.conversion.torch_file import read_state_dict
from chexmix_jax.conversion.vqgan import params_from_torch
from chexmix_jax.data.images import to_uint8
from chexmix_jax.errors import UserError
from chexmix_jax.models.vqgan import VQGANConfig, abstract_params, bind, init_params

# Below this gap between the two nearest codes, rounding may choose either (model.md).
CLEAR_MARGIN = 0.005
SMALL = VQGANConfig(
    resolution=32, in_channels=1, width=16, channel_multipliers=(1, 2), num_res_blocks=1,
    z_channels=8, embed_dim=4, num_codes=32, num_groups=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def small_params():
  return jax.jit(init_params, static_argnums=0)(SMALL, jax.random.key(0))


@pytest.fixture(scope="module")
def golden(shared):
  """(network, golden arrays) of the 32-pixel model with attention at side 16."""
  tensors = read_state_dict(shared / "parity/vqgan_attn/vqgan.ckpt")
  assert any(name.startswith("loss.") for name in tensors)
  config = VQGANConfig(
      resolution=32, width=32, channel_multipliers=(1, 2), num_res_blocks=1,
      attention_resolutions=(16,), z_channels=48, embed_dim=40, num_codes=64,
  )  # fmt: skip
  params = params_from_torch(config, tensors)
  shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config))
  assert jax.tree.map(lambda leaf: leaf.shape, params) == shapes
  return bind(config, params), np.load(shared / "parity/vqgan_attn.npz")


def _nhwc(array):
  return array.transpose(0, 2, 3, 1)


def _assert_ids_agree(ids, expected, margin):
  clear = margin > CLEAR_MARGIN
  assert clear.mean() > 0.9
  np.testing.assert_array_equal(np.asarray(ids).reshape(expected.shape)[clear], expected[clear])


def test_features_and_ids_equal_the_pytorch_implementation(golden):
  network, data = golden
  z = network.encode(_nhwc(data["x"]))
  np.testing.assert_allclose(z, _nhwc(data["z"]), atol=1e-4, rtol=0)
  _assert_ids_agree(network.quantize(z), data["ids"], data["margin"])


def test_rectangles_too(golden):
  network, data = golden
  z = network.encode(_nhwc(data["rect_x"]))
  np.testing.assert_allclose(z, _nhwc(data["rect_z"]), atol=1e-4, rtol=0)
  _assert_ids_agree(network.quantize(z), data["rect_ids"], data["rect_margin"])


def test_every_stage_equals_the_pytorch_implementation(golden):
  network, data = golden
  encoder, decoder = network.encoder, network.decoder
  x = encoder.conv_in(_nhwc(data["x"][:1]))
  np.testing.assert_allclose(x, _nhwc(data["dbg/enc_conv_in"]), atol=1e-4, rtol=0)
  x = encoder.levels[0].blocks[0](x)
  np.testing.assert_allclose(x, _nhwc(data["dbg/enc_down0_block0"]), atol=1e-4, rtol=0)
  x = encoder.downs[0](x)
  np.testing.assert_allclose(x, _nhwc(data["dbg/enc_down0_downsample"]), atol=1e-4, rtol=0)
  out = encoder(_nhwc(data["x"][:1]))
  np.testing.assert_allclose(out, _nhwc(data["dbg/encoder_out"]), atol=1e-4, rtol=0)
  y = decoder.conv_in(network.post_quant_conv(_nhwc(data["dec_codebook_entry"][:1])))
  np.testing.assert_allclose(y, _nhwc(data["dbg/dec_conv_in"]), atol=1e-4, rtol=0)
  y = decoder.middle.block1(y)
  np.testing.assert_allclose(y, _nhwc(data["dbg/dec_mid_block1"]), atol=1e-4, rtol=0)
  y = decoder.middle.attn(y)
  np.testing.assert_allclose(y, _nhwc(data["dbg/dec_mid_attn1"]), atol=1e-4, rtol=0)


def _assert_pictures_agree(pixels, expected, expected_u8):
  np.testing.assert_allclose(pixels, expected, atol=1e-4, rtol=0)
  ours = to_uint8(np.asarray(pixels))
  exact = (np.clip(expected.astype(np.float64), -1, 1) + 1) * 127.5
  at_edge = np.abs(exact - np.round(exact)) < 1e-4 * 127.5
  assert at_edge.mean() < 0.1
  np.testing.assert_array_equal(ours[~at_edge], expected_u8[~at_edge])
  assert np.abs(ours.astype(int) - expected_u8).max() <= 1


def test_decoded_pixels_equal_the_pytorch_implementation(golden):
  network, data = golden
  entries = network.lookup(data["dec_ids"].reshape(-1, 16, 16))
  np.testing.assert_array_equal(entries, _nhwc(data["dec_codebook_entry"]))
  _assert_pictures_agree(network.decode(entries), _nhwc(data["dec_pixels"]), data["dec_u8"])


def test_reconstructions_equal_the_pytorch_implementation(golden):
  network, data = golden
  ids = data["ids"][: len(data["rec_pixels"])].reshape(-1, 16, 16)
  pixels = network.decode(network.lookup(ids))
  _assert_pictures_agree(pixels, _nhwc(data["rec_pixels"]), data["rec_u8"])


def test_published_shape_has_68_7_million_parameters():
  leaves = jax.tree.leaves(abstract_params(VQGANConfig()))
  assert round(sum(int(np.prod(leaf.shape)) for leaf in leaves) / 1e6, 1) == 68.7
  assert VQGANConfig().grid == (32, 32)


def test_fresh_parameters_are_of_the_declared_shapes_and_scales(small_params):
  # Were a type weak, the training step would be compiled anew for what it makes of it.
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(small_params))
  leaves = jax.tree_util.tree_flatten_with_path(abstract_params(SMALL))
  assert jax.tree.structure(small_params) == leaves[1]
  for (path, shape), leaf in zip(leaves[0], jax.tree.leaves(small_params), strict=True):
    assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype), path
    name = path[-1].key
    if name == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      assert np.std(leaf) * fan_in**0.5 == pytest.approx(1, abs=4 / leaf.size**0.5), path
    elif name == "codebook":
      assert 0.9 / 32 < np.abs(leaf).max() <= 1 / 32
    else:
      assert set(np.unique(leaf)) == {1.0 if name == "scale" else 0.0}, path


def test_every_code_decodes_to_its_own_cell_and_quantises_to_itself(small_params):
  network = bind(SMALL, small_params)
  ids = np.arange(32, dtype=np.int32).reshape(1, 4, 8)
  np.testing.assert_array_equal(network.quantize(network.lookup(ids)), ids)


def test_of_two_equal_codes_the_lower_is_chosen(small_params):
  codebook = jnp.repeat(small_params["codebook"][:16], 2, axis=0)
  network = bind(SMALL, {**small_params, "codebook": codebook})
  ids = np.arange(32, dtype=np.int32).reshape(1, 4, 8)
  np.testing.assert_array_equal(network.quantize(network.lookup(ids)), ids // 2 * 2)


@pytest.mark.parametrize("side", [32, 48])
def test_shapes_at_any_side(side):
  def reconstruct(params, x):
    network = bind(SMALL, params)
    z = network.encode(x)
    ids = network.quantize(z)
    return z, ids, network.decode(network.lookup(ids))

  picture = jax.ShapeDtypeStruct((2, side, side, 1), "float32")
  z, ids, pixels = jax.eval_shape(reconstruct, abstract_params(SMALL), picture)
  assert z.shape == (2, side // 2, side // 2, 4) and z.dtype == jnp.float32
  assert ids.shape == z.shape[:3] and ids.dtype == jnp.int32
  assert pixels.shape == picture.shape and pixels.dtype == jnp.float32


def test_bfloat16_computes_on_float32_parameters(small_params):
  config = dataclasses.replace(SMALL, dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(config))} == {jnp.dtype("float32")}
  x = jax.random.uniform(jax.random.key(1), (1, 32, 32, 1), minval=-1)
  z, exact = (
      jax.jit(lambda params, c=c: bind(c, params).encode(x))(small_params) for c in (config, SMALL)
  )
  assert z.dtype == jnp.float32 and 0 < np.abs(z - exact).max() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 33}, "resolution=33 must be a multiple of 2"),
        ({"width": 12}, "width=12 times 1 must be a multiple of num_groups=8"),
    ],
)
def test_a_shape_that_does_not_divide_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(SMALL, **changes)
