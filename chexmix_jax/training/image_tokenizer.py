"""Training of the image tokenizer: reconstruction, gradients at several scales, codebook."""

import dataclasses
import functools
import pathlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from chexmix_jax import config as config_lib
from chexmix_jax.errors import Stopped, UserError
from chexmix_jax.models.vqgan import Params, VQGANConfig, bind, init_params
from chexmix_jax.parallel.distributed import StopRequest
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import named_sharding
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.training.checkpoint import write_job
from chexmix_jax.training.logging import MetricsWindow, Row, RunLog

State = dict[str, Any]

_SCALES = 3  # Full size, half and quarter.


@dataclasses.dataclass(frozen=True)
class ImageTokenizerTrainConfig:
  """Adam with warm-up and cosine decay to zero.

  Attributes:
    init: folder of an image tokenizer to adapt, or "" for a fresh one. Its codebook stays as it is,
      so that the codes mean what they meant: codebook_start and restart_every are 0.
    codebook_start: steps as a continuous autoencoder, before the codebook is drawn from features.
    restart_every: codes that no feature chose for so many steps are drawn anew from the features;
      none are in the last fifth of the steps, so that the codebook can settle.
    gradient_weight: of the multi-scale gradient loss.
    embedding_weight: of the embedding loss (codebook and commitment).
  """

  init: str = ""
  steps: int = 1000
  batch_size: int = 32
  learning_rate: float = 1e-3
  warmup_steps: int = 20
  codebook_start: int = 100
  restart_every: int = 50
  gradient_weight: float = 1.0
  embedding_weight: float = 1.0
  seed: int = 0
  log_every: int = 20
  checkpoint_every: int = 200

  def __post_init__(self):
    names = ["steps", "batch_size", "log_every", "checkpoint_every"]
    names += [] if self.init else ["restart_every"]
    config_lib.check_at_least_one(self, names, "the image tokenizer's training")
    if self.learning_rate <= 0:
      raise UserError(
          f"learning_rate={self.learning_rate} of the image tokenizer's training must be positive."
      )
    if self.init:
      if self.codebook_start or self.restart_every:
        raise UserError(
            f"init={self.init} keeps its codebook: set codebook_start and restart_every to 0."
        )
    elif not 1 <= self.codebook_start < self.steps:
      raise UserError(
          f"codebook_start={self.codebook_start} must be from 1 to below steps={self.steps}, or the"
          " image tokenizer never learns codes."
      )


def gradient_loss(difference_NHWC: jax.Array) -> jax.Array:
  """Mean absolute finite difference of the error at full, half and quarter size.

  Multi-scale gradient matching, Li and Snavely 2018 (MegaDepth, arXiv 1804.00607), equation 4.
  """
  total = jnp.zeros(())
  for scale in range(_SCALES):
    if scale:
      difference_NHWC = _halve(difference_NHWC)
    total += jnp.mean(jnp.abs(jnp.diff(difference_NHWC, axis=1)))
    total += jnp.mean(jnp.abs(jnp.diff(difference_NHWC, axis=2)))
  return total / _SCALES


def _halve(x_NHWC: jax.Array) -> jax.Array:
  n, h, w, c = x_NHWC.shape
  return x_NHWC.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def loss_and_metrics(
    config: VQGANConfig,
    train: ImageTokenizerTrainConfig,
    params: Any,
    x_NHWC: jax.Array,
    quantising: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Loss of a batch in [-1, 1], and its parts with the features and chosen codes.

  While `quantising` is false the decoder gets the features themselves. The embedding loss is the
  historical form, mean((sg(zq) - z)²) + β mean((zq - sg(z))²), van den Oord et al. 2017 with β on
  the codebook's term.
  """
  network = bind(config, params)
  z_NhwE = network.encode(x_NHWC)
  ids_Nhw = network.quantize(z_NhwE)
  zq_NhwE = network.lookup(ids_Nhw)
  stop = jax.lax.stop_gradient
  embedding = jnp.mean((stop(zq_NhwE) - z_NhwE) ** 2)
  embedding += config.commitment * jnp.mean((zq_NhwE - stop(z_NhwE)) ** 2)
  straight_through = z_NhwE + stop(zq_NhwE - z_NhwE)
  error_NHWC = network.decode(jnp.where(quantising, straight_through, z_NhwE)) - x_NHWC
  squared = jnp.mean(error_NHWC**2)
  loss = jnp.mean(jnp.abs(error_NHWC)) + squared
  loss += train.gradient_weight * gradient_loss(error_NHWC)
  loss += train.embedding_weight * jnp.where(quantising, embedding, 0.0)
  return loss, {
      "loss": loss,
      "psnr": -10 * jnp.log10(squared / 4),  # The range of [-1, 1] is 2.
      "embedding_loss": embedding,
      "z": z_NhwE.reshape(-1, config.embed_dim),
      "ids": ids_Nhw.reshape(-1),
  }


def train_step(
    state: State,
    x_NHWC: jax.Array,
    *,
    config: VQGANConfig,
    train: ImageTokenizerTrainConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[State, dict[str, jax.Array]]:
  """One step; the state is dict(step, params, opt_state, counts (K,), key).

  With `train.init` the codebook gets no gradient, and no code is drawn anew.
  """
  key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
  quantising = state["step"] >= train.codebook_start
  grads, metrics = jax.grad(
      functools.partial(loss_and_metrics, config, train), has_aux=True
  )(state["params"], x_NHWC, quantising)
  if train.init:
    grads["codebook"] = jnp.zeros_like(grads["codebook"])
  updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
  params = optax.apply_updates(state["params"], updates)

  features, ids = metrics.pop("z"), metrics.pop("ids")
  used = jnp.zeros(config.num_codes).at[ids].add(1.0)
  counts = state["counts"] + used
  step = state["step"] + 1
  restart, dead = jnp.zeros((), bool), jnp.zeros(config.num_codes, bool)
  if not train.init:
    # The first time, every code is drawn from the features.
    since_start = step - train.codebook_start
    first = since_start == 0
    restart = first | (
        (since_start > 0) & (since_start % train.restart_every == 0) & (step < 0.8 * train.steps)
    )
    dead = restart & (first | (counts == 0))
    picks = jax.random.choice(
        key, len(features), (config.num_codes,), replace=len(features) < config.num_codes
    )
    params["codebook"] = jnp.where(dead[:, None], features[picks], params["codebook"])
  share = used / len(features)
  metrics |= {
      "perplexity": jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share))),
      "usage": jnp.mean(counts > 0),
      "restarted": jnp.sum(dead).astype(jnp.float32),
      "grad_norm": optax.tree.norm(grads),
  }
  return {
      "step": step,
      "params": params,
      "opt_state": opt_state,
      "counts": jnp.where(restart, 0.0, counts),
      "key": state["key"],
  }, metrics


def _summary(step: int, rows: list[Row], seconds: float, skipped: int) -> Row:
  means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
  return {**means, "step_seconds": seconds}


def _channels(config: VQGANConfig, batch: dict[str, np.ndarray]) -> np.ndarray:
  """The pictures, grey repeated for a network that wants three channels."""
  return np.repeat(batch["image"], config.in_channels, axis=3)


def train_image_tokenizer(
    iterator: grain.DatasetIterator,
    config: VQGANConfig,
    train: ImageTokenizerTrainConfig,
    output: pathlib.Path,
    pictures: dict[str, Any],
    base: ImageTokenizer | None = None,
) -> ImageTokenizer:
  """Trains on batches dict(image: float32 (B, H, W, 1) in [-1, 1]) and writes `output`.

  While it trains, job.json, metrics.jsonl and checkpoints lie in `output`.training, from which a
  second start goes on; `output` itself appears when all is done, and is then read and returned.
  `pictures` (for JSON) says which ones the batches hold, so that other ones are not taken for them.
  `base` is the tokenizer that `train.init` names, of the same shape: training starts from it.
  At SIGTERM it finishes the step, saves a checkpoint and raises Stopped. Raises UserError for an
  `output` made with other settings or pictures, and for a loss that is not finite.
  """
  workdir = output.with_name(f"{output.name}.training")
  settings = {"image_tokenizer": config_lib.to_dict(config)} | config_lib.to_dict(train)
  job = settings | {"pictures": pictures}
  if base is not None:
    job["base"] = {"image_tokenizer": base.fingerprint}
  write_job(workdir, job)
  if (output / "config.json").exists():
    return ImageTokenizer.load(output)
  mesh = make_mesh(MeshConfig())
  if train.batch_size % mesh.size:
    raise UserError(
        f"batch_size={train.batch_size} of the image tokenizer's training must be a multiple of the"
        f" {mesh.size} devices."
    )
  optimizer = optax.adam(
      optax.warmup_cosine_decay_schedule(
          0.0, train.learning_rate, train.warmup_steps, max(train.steps, train.warmup_steps + 1)
      ),
      b2=0.99,
  )
  replicated = NamedSharding(mesh, PartitionSpec())

  def init(key: jax.Array, params: Params | None) -> State:
    params_key, key = jax.random.split(key)
    if params is None:
      params = init_params(config, params_key)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": optimizer.init(params),
        "counts": jnp.zeros(config.num_codes),
        "key": jax.random.key_data(key),
    }

  step_fn = jax.jit(
      functools.partial(train_step, config=config, train=train, optimizer=optimizer),
      out_shardings=replicated,
      donate_argnums=0,
  )
  start = None if base is None else base.params
  state = jax.jit(init, out_shardings=replicated)(jax.random.key(train.seed), start)
  options = ocp.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True)
  checkpoints = (workdir / "checkpoints").absolute()
  with StopRequest() as stop, ocp.CheckpointManager(checkpoints, options=options) as manager:
    if manager.latest_step() is not None:
      shapes = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state
      )
      saved = manager.restore(
          manager.latest_step(),
          args=ocp.args.Composite(
              state=ocp.args.StandardRestore(shapes),
              data=grain.checkpoint.CheckpointRestore(iterator),
          ),
      )
      state = saved.state
    log = RunLog(workdir, int(state["step"]), train.steps, "image tokenizer")
    try:
      window = MetricsWindow(log, train.log_every, _summary)
      for step in range(int(state["step"]) + 1, train.steps + 1):
        images = jax.make_array_from_process_local_data(
            named_sharding(mesh, ("batch", None, None, None)), _channels(config, next(iterator))
        )
        state, metrics = step_fn(state, images)
        window.add(step, metrics)
        stopping = stop.reached(step) and step < train.steps
        if step % train.checkpoint_every == 0 or step == train.steps or stopping:
          window.drain()
          manager.save(
              step,
              args=ocp.args.Composite(
                  state=ocp.args.StandardSave(state),
                  data=grain.checkpoint.CheckpointSave(iterator),
              ),
          )
        if stopping:
          manager.wait_until_finished()
          raise Stopped(
              f"stopped by SIGTERM after step {step}; the same command goes on from there"
          )
    finally:
      log.close()
  codes_of = "" if base is None else base.codes_fingerprint
  tokenizer = ImageTokenizer(config, jax.device_get(state["params"]), codes_of)
  tokenizer.save(output)
  return tokenizer
