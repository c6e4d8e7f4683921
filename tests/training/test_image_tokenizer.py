"""Training of the image tokenizer: its losses, its codebook, and that a stopped run goes on."""

import contextlib
import dataclasses
import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chexmix_jax.data import images, studies
from chexmix_jax.data.pipeline import image_iterator
from chexmix_jax.errors import Stopped, UserError
from chexmix_jax.models.vqgan import VQGANConfig, bind, init_params
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.training import image_tokenizer as training
from chexmix_jax.training.checkpoint import saved_steps
from chexmix_jax.training.image_tokenizer import (
    ImageTokenizerTrainConfig,
    gradient_loss,
    loss_and_metrics,
    train_image_tokenizer,
    train_step,
)

NETWORK = VQGANConfig(
    resolution=16, in_channels=1, width=8, channel_multipliers=(1,), num_res_blocks=1,
    z_channels=4, embed_dim=4, num_codes=16, num_groups=4,
)  # fmt: skip
# The codebook starts at step 3 and dead codes are drawn anew at steps 5 and 7.
TRAIN = ImageTokenizerTrainConfig(
    steps=10, batch_size=8, learning_rate=1e-2, warmup_steps=2, codebook_start=3, restart_every=2,
    log_every=1, checkpoint_every=4,
)  # fmt: skip
METRICS = {
    "step", "loss", "psnr", "embedding_loss", "perplexity", "usage", "restarted", "grad_norm",
    "step_seconds",
}  # fmt: skip


def run(studies_dir, output, config=NETWORK, train=TRAIN, pictures="generated", base=None):
  with (
      pytest.MonkeyPatch.context() as patch,
      contextlib.closing(image_iterator(studies_dir, "train", train.batch_size, 0)) as iterator,
  ):
    # Eight would save the state in eight pieces.
    patch.setattr(training, "make_mesh", lambda _: make_mesh(MeshConfig(), jax.devices()[:2]))
    return train_image_tokenizer(iterator, config, train, output, {"source": pictures}, base)


def read_lines(output):
  path = output.with_name(f"{output.name}.training") / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(studies_dir, tmp_path_factory):
  """(folder, tokenizer) of a run that was never interrupted."""
  output = tmp_path_factory.mktemp("whole") / "tokenizer"
  return output, run(studies_dir, output)


@pytest.fixture(scope="module")
def params():
  return jax.jit(init_params, static_argnums=0)(NETWORK, jax.random.key(0))


@pytest.fixture(scope="module")
def pictures(studies_dir):
  """float32 (8, 16, 16, 1)."""
  return images.to_float(studies.load_studies(studies_dir, "train").images[:8])[..., None]


def test_a_run_writes_lines_and_a_tokenizer_that_loads(whole, pictures):
  output, tokenizer = whole
  lines = read_lines(output)
  assert [line["step"] for line in lines] == list(range(1, 11))
  assert {frozenset(line) for line in lines} == {frozenset(METRICS)}
  # Every code is drawn once at the start of the codebook; dead ones later, but not at the end.
  restarted = [line["restarted"] for line in lines]
  assert restarted[:3] == [0, 0, 16] and restarted[8:] == [0, 0]
  assert all(1 <= line["perplexity"] <= 16 and 0 < line["usage"] <= 1 for line in lines)
  loaded = ImageTokenizer.load(output)
  assert loaded.fingerprint == tokenizer.fingerprint
  codes = loaded.encode(pictures)
  assert codes.shape == (8, 16, 16) and len(np.unique(codes)) > 1
  np.testing.assert_array_equal(codes, tokenizer.encode(pictures))


def test_finished_output_is_read_not_trained_again(whole, studies_dir, monkeypatch):
  output, tokenizer = whole
  monkeypatch.setattr(training, "train_step", None)
  assert run(studies_dir, output).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    "preempted, stop_step, saved",
    [
        (False, 2, []),  # Before a checkpoint,
        (False, 7, [4]),  # with a codebook,
        (True, 6, [6]),  # and by SIGTERM, for which it saves one.
    ],
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    whole, studies_dir, tmp_path, monkeypatch, preempted, stop_step, saved
):
  add = training.MetricsWindow.add

  def stopping(window, step, metrics):
    if step == stop_step:
      if not preempted:
        raise KeyboardInterrupt
      signal.raise_signal(signal.SIGTERM)
    add(window, step, metrics)

  output = tmp_path / "tokenizer"
  with monkeypatch.context() as patch:
    patch.setattr(training.MetricsWindow, "add", stopping)
    with pytest.raises(Stopped if preempted else KeyboardInterrupt):
      run(studies_dir, output)
  assert not output.exists()
  assert saved_steps(tmp_path / "tokenizer.training") == saved
  tokenizer = run(studies_dir, output)
  assert tokenizer.fingerprint == whole[1].fingerprint
  ours, theirs = (
      [{k: v for k, v in line.items() if k != "step_seconds"} for line in read_lines(folder)]
      for folder in (output, whole[0])
  )
  assert ours == theirs


def test_other_settings_for_the_same_output_are_refused(whole, studies_dir):
  with pytest.raises(UserError, match="another seed;"):
    run(studies_dir, whole[0], train=dataclasses.replace(TRAIN, seed=1))
  with pytest.raises(UserError, match=r"another image_tokenizer\.num_codes;"):
    run(studies_dir, whole[0], config=dataclasses.replace(NETWORK, num_codes=32))
  with pytest.raises(UserError, match=r"another pictures\.source;"):
    run(studies_dir, whole[0], pictures="others")


@pytest.mark.parametrize(
    "name, value",
    [("steps", 0), ("batch_size", 0), ("learning_rate", 0.0), ("codebook_start", 10),
     ("codebook_start", 0), ("restart_every", 0), ("checkpoint_every", 0)],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, value):
  with pytest.raises(UserError, match=f"{name}={value}"):
    dataclasses.replace(TRAIN, **{name: value})


def test_an_adapted_tokenizer_keeps_the_codebook(whole, studies_dir, tmp_path):
  folder, base = whole
  train = dataclasses.replace(
      TRAIN, init=str(folder), steps=4, codebook_start=0, restart_every=0, warmup_steps=1
  )
  adapted = run(studies_dir, tmp_path / "adapted", train=train, base=base)
  changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), adapted.params, base.params)
  assert not changed["codebook"]
  assert changed["encoder"]["conv_in"]["kernel"] and changed["decoder"]["conv_out"]["kernel"]
  first, *_ = lines = read_lines(tmp_path / "adapted")
  assert {line["restarted"] for line in lines} == {0}
  # It starts where the base ended, and gives the decoder codes from the first step on.
  assert abs(first["psnr"] - read_lines(folder)[-1]["psnr"]) < 1
  loaded = ImageTokenizer.load(tmp_path / "adapted")
  assert loaded.codes_fingerprint == base.fingerprint == base.codes_fingerprint
  assert loaded.fingerprint == adapted.fingerprint != base.fingerprint


@pytest.mark.parametrize("change", [{"codebook_start": 1}, {"restart_every": 50}])
def test_what_would_draw_codes_anew_is_refused_with_init(change):
  with pytest.raises(UserError, match="init=x keeps its codebook: set codebook_start and"):
    ImageTokenizerTrainConfig(**({"init": "x", "codebook_start": 0, "restart_every": 0} | change))


def test_a_loss_that_is_not_finite_writes_no_tokenizer(studies_dir, tmp_path, monkeypatch):
  add = training.MetricsWindow.add

  def breaking(window, step, metrics):
    add(window, step, metrics | ({"loss": np.float32(np.nan)} if step == 6 else {}))

  monkeypatch.setattr(training.MetricsWindow, "add", breaking)
  with pytest.raises(UserError, match="not finite at step 6"):
    run(studies_dir, tmp_path / "tokenizer")
  assert not (tmp_path / "tokenizer").exists()
  assert saved_steps(tmp_path / "tokenizer.training") == [4]


def test_gradient_loss_by_hand():
  # A ramp of 1 a pixel along the width: at half size it is 2 a pixel, at a quarter 4.
  ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (1, 8, 8, 1))
  assert gradient_loss(ramp) == pytest.approx((1 + 2 + 4) / 3)
  assert gradient_loss(ramp.swapaxes(1, 2)) == pytest.approx((1 + 2 + 4) / 3)
  assert gradient_loss(jnp.ones((1, 8, 8, 1))) == 0


def loss_of(params, x, **changes):
  train = dataclasses.replace(TRAIN, **changes)
  function = jax.jit(loss_and_metrics, static_argnums=(0, 1))
  return function(NETWORK, train, params, x, jnp.asarray(True))


@jax.jit
def encode(params, x):
  """Features, their ids and the codes of these."""
  network = bind(NETWORK, params)
  z = network.encode(x)
  ids = network.quantize(z)
  return z, ids, network.lookup(ids)


def test_loss_is_the_sum_of_its_parts(params, pictures):
  loss, metrics = loss_of(params, pictures, embedding_weight=0.5, gradient_weight=2.0)
  z, _, zq = encode(params, pictures)
  error = jax.jit(lambda zq: bind(NETWORK, params).decode(zq))(zq) - pictures
  squared = jnp.mean(error**2)
  embedding = 1.25 * jnp.mean((zq - z) ** 2)
  expected = jnp.mean(jnp.abs(error)) + squared + 2.0 * gradient_loss(error) + 0.5 * embedding
  assert loss == pytest.approx(float(expected), rel=1e-4)
  assert metrics["embedding_loss"] == pytest.approx(float(embedding), rel=1e-4)
  # Against a mean squared error over the range of 2, that of the pixels in [0, 1].
  assert metrics["psnr"] == pytest.approx(-10 * np.log10(np.mean((error / 2) ** 2)), rel=1e-4)


def test_the_historical_embedding_loss_puts_beta_on_the_codebook(params, pictures):
  """mean((sg(zq) - z)^2) + β mean((zq - sg(z))^2): with nothing else, the gradients differ by β."""

  def embedding(params):
    return loss_of(params, pictures)[1]["embedding_loss"]

  grads = jax.jit(jax.grad(embedding))(params)
  z, ids, zq = encode(params, pictures)
  difference = np.asarray(zq - z).reshape(-1, 4)
  expected = np.zeros((16, 4))
  np.add.at(expected, np.asarray(ids).ravel(), 0.25 * 2 * difference / difference.size)
  np.testing.assert_allclose(grads["codebook"], expected, rtol=1e-3, atol=1e-7)
  bias = -2 * difference.sum(0) / difference.size
  np.testing.assert_allclose(grads["quant_conv"]["bias"], bias, rtol=1e-3, atol=1e-6)


def test_gradients_pass_straight_through_the_codebook(params, pictures):
  """The decoder's error reaches the encoder, as if the code were the feature."""

  def loss(params):
    return loss_of(params, pictures, embedding_weight=0.0)[0]

  grads = jax.jit(jax.grad(loss))(params)
  assert np.abs(grads["encoder"]["conv_in"]["kernel"]).max() > 0
  assert not np.any(grads["codebook"])


def make_state(params, optimizer, step, counts):
  return {
      "step": jnp.asarray(step, jnp.int32),
      "params": params,
      "opt_state": optimizer.init(params),
      "counts": jnp.asarray(counts, jnp.float32),
      "key": jax.random.key_data(jax.random.key(1)),
  }


def test_codes_that_nothing_chose_are_drawn_from_the_features(params, pictures):
  optimizer = optax.sgd(0.0)  # Only the restart changes a parameter.
  # Codes 0 and 1 lie among the features, the others far away; code 15 was chosen lately.
  z = np.asarray(encode(params, pictures)[0]).reshape(-1, 4)
  codebook = np.full((16, 4), 1e3, np.float32)
  codebook[:2] = z[0], z[-1]
  params = {**params, "codebook": jnp.asarray(codebook)}
  step_fn = jax.jit(
      functools.partial(train_step, config=NETWORK, train=TRAIN, optimizer=optimizer)
  )
  counts = np.zeros(16)
  counts[15] = 2.0
  # Step 4 to 5: the codebook started at 3, so two steps later it is time.
  state, metrics = step_fn(make_state(params, optimizer, 4, counts), pictures)
  assert metrics["restarted"] == 13 and not np.any(state["counts"])
  restarted = np.asarray(state["params"]["codebook"])
  np.testing.assert_array_equal(restarted[[0, 1, 15]], codebook[[0, 1, 15]])
  distance = np.abs(restarted[2:15, None] - z[None]).max(-1).min(-1)
  assert distance.max() < 1e-5
  # Step 3 to 4 is not, and neither is anything in the last fifth.
  for step in (3, 8):
    state, metrics = step_fn(make_state(params, optimizer, step, counts), pictures)
    assert metrics["restarted"] == 0
    np.testing.assert_array_equal(state["params"]["codebook"], codebook)
    assert state["counts"][15] == 2 and state["counts"][:2].sum() == len(z)
  assert metrics["usage"] == pytest.approx(3 / 16)
  share = np.asarray(state["counts"])[:2] / len(z)
  assert metrics["perplexity"] == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-4)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(studies_dir, tmp_path):
  if jax.device_count() < 2:
    pytest.skip("needs 2 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  with pytest.raises(UserError, match=r"batch_size=9 .* multiple of the 2 devices"):
    run(studies_dir, tmp_path / "tokenizer", train=dataclasses.replace(TRAIN, batch_size=9))
