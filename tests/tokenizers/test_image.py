"""The image tokenizer: batches, ranges, and its folder."""

import json

import jax
import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.models.vqgan import VQGANConfig, bind, init_params
from chexmix_jax.tokenizers import image
from chexmix_jax.tokenizers.image import ImageTokenizer

CONFIG = VQGANConfig(
    resolution=16, in_channels=3, width=8, channel_multipliers=(1, 2), num_res_blocks=1,
    z_channels=4, embed_dim=4, num_codes=16, num_groups=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
  made = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
  # Pixels beyond the range, and codes that lie among the features.
  made["decoder"]["conv_out"]["kernel"] *= 10
  return {**made, "codebook": made["codebook"] * 16}


@pytest.fixture
def tokenizer(params):
  return ImageTokenizer(CONFIG, params)


def make_pixels(number, channels=3):
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (number, 16, 16, channels)).astype(np.float32)


def test_codes_and_pixels_are_those_of_the_network(tokenizer, params):
  network = bind(CONFIG, params)
  pixels = make_pixels(3)
  codes = tokenizer.encode(pixels)
  assert codes.shape == (3, *tokenizer.grid) and codes.dtype == np.int32
  np.testing.assert_array_equal(codes, network.quantize(network.encode(pixels)))
  decoded = tokenizer.decode(codes)
  raw = np.asarray(network.decode(network.lookup(codes)))
  assert np.abs(raw).max() > 1
  np.testing.assert_allclose(decoded, np.clip(raw, -1, 1), atol=1e-4)


@pytest.mark.parametrize("number", [1, 4, 5, 9])
def test_the_number_of_pictures_changes_nothing(tokenizer, monkeypatch, number):
  monkeypatch.setattr(image, "_BATCH", 4)
  pixels = make_pixels(9)
  alone = np.concatenate([tokenizer.encode(pixels[i : i + 1]) for i in range(number)])
  codes = tokenizer.encode(pixels[:number])
  np.testing.assert_array_equal(codes, alone)
  np.testing.assert_array_equal(tokenizer.decode(codes)[-1], tokenizer.decode(codes[-1:])[0])


@pytest.mark.parametrize(("pixels", "passes"), [(1, 3), (2 * 16 * 16, 2), (9 * 16 * 16, 1)])
def test_a_cpu_takes_few_large_pictures_at_a_time(tokenizer, monkeypatch, pixels, passes):
  monkeypatch.setattr(image, "_CPU_PIXELS", pixels)
  sizes = []
  encode = image._encode
  monkeypatch.setattr(image, "_encode", lambda *args: sizes.append(len(args[2])) or encode(*args))
  assert len(tokenizer.encode(make_pixels(3))) == 3
  assert len(sizes) == passes and len(set(sizes)) == 1


def test_grey_pictures_are_repeated(tokenizer):
  grey = make_pixels(2, channels=1)
  np.testing.assert_array_equal(
      tokenizer.encode(grey), tokenizer.encode(np.repeat(grey, 3, axis=3))
  )


@pytest.mark.parametrize("shape", [(1, 16, 8, 3), (1, 32, 32, 3), (1, 16, 16, 2)])
def test_pictures_of_another_size_are_refused(tokenizer, shape):
  with pytest.raises(UserError, match=r"wants 16 x 16 pixels and 3 channel\(s\).*--size=16"):
    tokenizer.encode(np.zeros(shape, np.float32))


def test_a_saved_tokenizer_comes_back(tokenizer, tmp_path):
  tokenizer.save(tmp_path / "tokenizer")
  loaded = ImageTokenizer.load(tmp_path / "tokenizer")
  assert loaded.config == CONFIG and loaded.fingerprint == tokenizer.fingerprint
  np.testing.assert_array_equal(loaded.encode(make_pixels(2)), tokenizer.encode(make_pixels(2)))
  assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_the_fingerprint_tells_parameters_apart(tokenizer, params):
  changed = {**params, "codebook": np.asarray(params["codebook"]) * np.float32(1 + 1e-6)}
  assert ImageTokenizer(CONFIG, changed).fingerprint != tokenizer.fingerprint
  assert ImageTokenizer(CONFIG, jax.device_get(params)).fingerprint == tokenizer.fingerprint


def test_a_folder_that_is_no_tokenizer_is_refused(tmp_path):
  with pytest.raises(UserError, match="is not an image tokenizer"):
    ImageTokenizer.load(tmp_path)


def _change_config(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _change_config(folder, num_codes=8), "does not fit its config.json"),
        (lambda folder: _change_config(folder, num_res_blocks=2), "does not fit its config.json"),
        (lambda folder: _change_config(folder, embed_dims=4), "embed_dims is not a setting"),
        (lambda folder: (folder / "params").rename(folder / "x"), "does not fit its config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
    ],
)
def test_a_damaged_tokenizer_is_named(tokenizer, tmp_path, damage, message):
  tokenizer.save(tmp_path / "tokenizer")
  damage(tmp_path / "tokenizer")
  with pytest.raises(UserError, match=message):
    ImageTokenizer.load(tmp_path / "tokenizer")
