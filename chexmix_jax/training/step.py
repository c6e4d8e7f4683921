"""The training step of both stages, token-weighted cross-entropy over packed documents, and of the
classifier of findings.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from chexmix_jax.data.packing import max_documents
from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.parallel.devices import STEP_OPTIONS
from chexmix_jax.parallel.sharding import named_sharding, param_shardings, parameter_name
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.loss import weighted_nll
from chexmix_jax.training.trainable import join, prepare_params

Batch = dict[str, jax.Array]
StepFunction = Callable[["TrainState", Batch], tuple["TrainState", dict[str, jax.Array]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step changes, and what it reads.

  Attributes:
    params: that are trained.
    key: data (uint32) that dropout is drawn from.
    frozen: parameters that are not trained, of a run that adapts a model.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  key: jax.Array
  frozen: Params = dataclasses.field(default_factory=dict)


def cross_entropy_sums(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    batch: Batch,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted sum of the tokens' negative log-likelihoods (nats), and the sums to divide by.

  The batch holds `inputs`, `targets`, `positions`, `segment_ids` int32 (B, T) and `weights` float32
  (B, T). Image and text sums count the tokens that carry weight, unweighted.
  """
  model = Transformer(config, params)
  hidden_BTD = model.last_hidden(
      batch["inputs"], batch["positions"], batch["segment_ids"], dropout_key=dropout_key
  )
  weights_BT = batch["weights"]
  head = model.head
  total, nll_BT = weighted_nll(
      hidden_BTD, head["kernel"], head["bias"], batch["targets"], weights_BT
  )
  counted_BT = weights_BT > 0
  image_BT = counted_BT & vocabulary.is_image(batch["targets"])
  text_BT = counted_BT & ~vocabulary.is_image(batch["targets"])
  sums = {
      "weight": jnp.sum(weights_BT),
      "loss_sum": total,
      "image_nll": jnp.sum(nll_BT * image_BT),
      "image_tokens": jnp.sum(image_BT).astype(jnp.float32),
      "text_nll": jnp.sum(nll_BT * text_BT),
      "text_tokens": jnp.sum(text_BT).astype(jnp.float32),
      "tokens": jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32),
  }
  return total, sums


def classification_sums(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    batch: Batch,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sum of the findings' binary cross-entropies (nats), and the sums to divide by.

  Besides what cross_entropy_sums takes, but for the weights, the batch holds `labels` float32
  (B, S, F) of the documents of each row: 1, 0, or NaN for what does not count.
  """
  labels_BSF = batch["labels"]
  logits_BSF = Transformer(config, params).classify(
      batch["inputs"], are_pictures(vocabulary, batch), batch["positions"], batch["segment_ids"],
      labels_BSF.shape[1], dropout_key=dropout_key,
  )  # fmt: skip
  is_known_BSF = jnp.isfinite(labels_BSF)
  losses_BSF = optax.sigmoid_binary_cross_entropy(logits_BSF, jnp.nan_to_num(labels_BSF))
  total = jnp.sum(losses_BSF * is_known_BSF)
  return total, {
      "weight": jnp.sum(is_known_BSF).astype(jnp.float32),
      "loss_sum": total,
      "tokens": jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32),
  }


def are_pictures(vocabulary: Vocabulary, batch: Batch) -> jax.Array:
  """Which positions (B, T) are those of image codes, hidden ones among them."""
  # They are behind a target that is a code.
  return jnp.pad(vocabulary.is_image(batch["targets"])[:, :-1], ((0, 0), (1, 0)))


def loss_sums(config: TransformerConfig, *args: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
  """What a model with this config is trained on: next tokens, or findings with a classifier."""
  sums = cross_entropy_sums if config.classifier is None else classification_sums
  return sums(config, *args)


def mean_losses(sums: Mapping[str, float]) -> dict[str, float]:
  """`loss` (nats), `image_nll` and `text_nll`, of what loss_sums gave, added up.

  Of a modality without a token that carries loss there is none.
  """
  losses = {"loss": sums["loss_sum"] / max(sums["weight"], 1.0)}
  for kind in ("image", "text"):
    if sums.get(f"{kind}_tokens"):
      losses[f"{kind}_nll"] = sums[f"{kind}_nll"] / sums[f"{kind}_tokens"]
  return losses


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: TransformerConfig,
    vocabulary: Vocabulary,
    optimizer: optax.GradientTransformation,
    accumulation: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimizer step over `accumulation` micro-batches; the loss is the mean over all weights.

  Gradients of the weighted sums are added up and divided by the sum of the weights of the whole
  batch, so micro-batches with few weighted tokens count for no more than those tokens. Where the
  loss or its gradient is not finite, parameters and optimizer state stay as they are.
  """
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

  def loss_fn(params, batch, key):
    return loss_sums(config, vocabulary, join(params, state.frozen), batch, key)

  gradient = jax.grad(loss_fn, has_aux=True)
  if accumulation == 1:
    grads, sums = gradient(state.params, batch, key)
  else:
    # Micro-batch i takes rows i, i+n, …, which leaves every device the rows it already holds.
    micros = jax.tree.map(
        lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def accumulate(carry, micro):
      summed = gradient(state.params, micro[0], jax.random.fold_in(key, micro[1]))
      return jax.tree.map(jnp.add, carry, summed), None

    shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], micros), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, (micros, jnp.arange(accumulation)))

  grads = jax.tree.map(lambda g: g / jnp.maximum(sums["weight"], 1.0), grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  loss = sums["loss_sum"] / jnp.maximum(sums["weight"], 1.0)
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (params, opt_state),
      (state.params, state.opt_state),
  )
  metrics = {**sums, "loss": loss, "grad_norm": grad_norm}
  return TrainState(state.step + 1, params, opt_state, state.key, state.frozen), metrics


def abstract_state(
    config: TransformerConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
) -> TrainState:
  """Shapes, dtypes and shardings of the whole training state."""
  replicated = NamedSharding(mesh, PartitionSpec())

  def sharded(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  shapes = jax.eval_shape(lambda: init_state(config, optimizer, jax.random.key(0)))
  shardings = param_shardings(mesh, shapes.params)
  by_name = {
      parameter_name(path): (leaf.shape, sharding)
      for (path, leaf), sharding in zip(
          jax.tree_util.tree_flatten_with_path(shapes.params)[0],
          jax.tree.leaves(shardings),
          strict=True,
      )
  }

  def like_its_parameter(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # An optimizer keeps copies of the parameters' tree, at any depth; the rest are counters.
    names = parameter_name(path).split(".")
    for start in range(len(names)):
      shape, sharding = by_name.get(".".join(names[start:]), (None, None))
      if shape == leaf.shape:
        return sharded(leaf, sharding)
    return sharded(leaf, replicated)

  return TrainState(
      sharded(shapes.step, replicated),
      jax.tree.map(sharded, shapes.params, shardings),
      jax.tree_util.tree_map_with_path(like_its_parameter, shapes.opt_state),
      sharded(shapes.key, replicated),
      jax.tree.map(sharded, shapes.frozen, param_shardings(mesh, shapes.frozen)),
  )


def abstract_batch(
    config: TransformerConfig, rows: int, length: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of a batch, see cross_entropy_sums and classification_sums."""
  sharding = named_sharding(mesh, ("batch", None))
  shapes: dict[str, tuple[tuple[int, ...], Any]] = {
      name: ((rows, length), jnp.int32)
      for name in ("inputs", "targets", "positions", "segment_ids")
  }
  shapes["weights"] = (rows, length), jnp.float32
  if config.classifier is not None:
    findings = len(config.classifier.findings)
    shapes["labels"] = (rows, max_documents(length), findings), jnp.float32
  return {
      name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
      for name, (shape, dtype) in shapes.items()
  }


def init_state(
    config: TransformerConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    base: Params | None = None,
) -> TrainState:
  """Fresh state, see jit_init_state."""
  params_key, dropout_key = jax.random.split(key)
  params, frozen = prepare_params(config, params_key, base)
  return TrainState(
      jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(dropout_key),
      frozen,
  )  # fmt: skip


def jit_init_state(
    config: TransformerConfig, optimizer: optax.GradientTransformation, state: TrainState
) -> Callable[..., TrainState]:
  """Gives a fresh state for a key, born sharded; with a base, which is used up, of its parameters.

  `state` gives the shardings.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.jit(
      functools.partial(init_state, config, optimizer), out_shardings=shardings, donate_argnums=1
  )


def jit_train_step(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    accumulation: int = 1,
) -> StepFunction:
  """The compiled step over `mesh`; donates its state. `state` gives the shardings."""
  step = functools.partial(
      train_step,
      config=config,
      vocabulary=vocabulary,
      optimizer=optimizer,
      accumulation=accumulation,
  )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.jit(
      step,
      in_shardings=(shardings, named_sharding(mesh, ("batch", None))),
      out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
      donate_argnums=0,
      compiler_options=STEP_OPTIONS[mesh.devices.flat[0].platform],
  )
