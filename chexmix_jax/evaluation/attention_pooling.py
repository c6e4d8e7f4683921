"""Pooling that is learned: one query a layer, which attends to the image positions.

Attention pooling by a learned query (Lee et al. 2019, arXiv 1810.00825, section 3.2, with one seed
vector and without projections). The model stays as it is; queries and a linear head of each layer
are trained together, and the head is thrown away.

Shape suffixes as in models/transformer.py: L layers (with the embedding), B batch, T image
positions, D width; N pictures, F findings.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chexmix_jax.inference.embeddings import image_prompts
from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.parallel.batches import map_rows, put_rows
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.progress import progress
from chexmix_jax.tokenizers.vocabulary import Vocabulary

_EPOCHS = 10
_LEARNING_RATE = 1e-2


def embed_by_attention(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    queries_LD: np.ndarray,
    image_ids: np.ndarray,
    batch_size: int,
    description: str = "",
) -> np.ndarray:
  """float32 (N, L, D): hidden states of `boi · image · eoi`, weighted by the queries.

  `image_ids` are token ids (N, T); a query of zeros gives the mean over the image.
  """
  function = jax.tree_util.Partial(_embed(config), params, queries_LD)
  return map_rows(function, image_prompts(vocabulary, image_ids), batch_size, description)


def fit_queries(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    image_ids: np.ndarray,
    targets_NF: np.ndarray,
    batch_size: int,
    seed: int,
    description: str = "",
) -> np.ndarray:
  """float32 (L, D), of the least mean log-loss over 10 passes; NaN targets do not count.

  Every layer is a problem of its own, from a query of zeros on: Adam, learning rate 0.01 that falls
  to zero by a cosine. The order of the pictures depends on `seed` alone.
  """
  mesh = make_mesh()
  batch_size = -(-batch_size // mesh.size) * mesh.size
  count = len(image_ids)
  prompts = image_prompts(vocabulary, image_ids)
  means_NLD = embed_by_attention(
      config, vocabulary, params,
      np.zeros((config.num_layers + 1, config.width), np.float32), image_ids, batch_size,
      description,
  )  # fmt: skip
  optimizer, step = _trainer(config, _EPOCHS * -(-count // batch_size))
  known_F = np.maximum(np.isfinite(targets_NF).sum(0), 1)
  rate_F = np.clip(np.nansum(targets_NF, axis=0) / known_F, 1e-3, 1 - 1e-3)
  shape = means_NLD.shape[1:]
  learned: dict[str, Any] = {
      "query_LD": jnp.zeros(shape),
      "weights_LDF": jnp.zeros((*shape, len(rate_F))),
      "bias_LF": jnp.broadcast_to(jnp.log(rate_F / (1 - rate_F)), (shape[0], len(rate_F))),
  }
  rng = np.random.default_rng(seed)
  with jax.set_mesh(mesh):
    state = learned, optimizer.init(learned)
    standard = {"mean_LD": means_NLD.mean(0), "scale_LD": means_NLD.std(0) + 1e-6}
    orders = [rng.permutation(count) for _ in range(_EPOCHS)]
    starts = [(order, start) for order in orders for start in range(0, count, batch_size)]
    for order, start in progress(starts, desc=f"{description}, queries", unit="batch", leave=False):
      take = np.resize(order[start : start + batch_size], batch_size)
      # Rows that fill up the last batch have no targets.
      filled = np.arange(batch_size)[:, None] < len(order[start : start + batch_size])
      batch = {"tokens": prompts[take], "targets_BF": np.where(filled, targets_NF[take], np.nan)}
      state = step(params, standard, state, put_rows(mesh, batch))
  return jax.device_get(state[0]["query_LD"])


@functools.cache
def _embed(config: TransformerConfig) -> Callable:
  def function(params: Params, queries_LD: jax.Array, prompts_BT: jax.Array) -> jax.Array:
    return _pool(_states(config, params, prompts_BT), queries_LD).swapaxes(0, 1)

  return function


def _states(config: TransformerConfig, params: Params, prompts_BT: jax.Array) -> jax.Array:
  """(L, B, T, D) of the image positions."""
  return Transformer(config, params).hidden_states(prompts_BT)[:, :, 1:-1]


def _pool(hidden_LBTD: jax.Array, queries_LD: jax.Array) -> jax.Array:
  """(L, B, D). Scores are of states of length √D: those of late layers are far longer."""
  hidden_LBTD = hidden_LBTD.astype(jnp.float32)
  width = hidden_LBTD.shape[-1]
  lengths_LBT1 = jnp.sqrt(jnp.mean(hidden_LBTD**2, -1, keepdims=True)) + 1e-6
  scores_LBT = jnp.einsum("LBTD,LD->LBT", hidden_LBTD / lengths_LBT1, queries_LD) / width**0.5
  return jnp.einsum("LBT,LBTD->LBD", jax.nn.softmax(scores_LBT, -1), hidden_LBTD)


@functools.cache
def _trainer(
    config: TransformerConfig, num_steps: int
) -> tuple[optax.GradientTransformation, Callable]:
  """The optimizer and its jitted step, (params, standard, state, batch) -> state."""
  optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps))

  def loss_fn(learned, hidden_LBTD, standard, targets_BF):
    pooled_LBD = _pool(hidden_LBTD, learned["query_LD"])
    pooled_LBD = (pooled_LBD - standard["mean_LD"][:, None]) / standard["scale_LD"][:, None]
    logits_LBF = jnp.einsum("LBD,LDF->LBF", pooled_LBD, learned["weights_LDF"])
    logits_LBF += learned["bias_LF"][:, None]
    known_BF = jnp.isfinite(targets_BF)
    losses_LBF = optax.sigmoid_binary_cross_entropy(logits_LBF, jnp.nan_to_num(targets_BF))
    return jnp.sum(losses_LBF * known_BF) / jnp.maximum(known_BF.sum(), 1)

  @jax.jit
  def step(params, standard, state, batch):
    learned, optimizer_state = state
    hidden_LBTD = _states(config, params, batch["tokens"])
    gradients = jax.grad(loss_fn)(learned, hidden_LBTD, standard, batch["targets_BF"])
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, learned)
    return optax.apply_updates(learned, updates), optimizer_state

  return optimizer, step
