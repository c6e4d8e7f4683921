"""The decoder of CheXmix: Phi-2's layers, see layer.py, between an embedding and an output.

Shape suffixes: B batch, T tokens, S cached tokens, D width, H heads, K head width, L layers,
V vocabulary. Parameters are a plain nested dict of arrays; those of the layers are stacked on a
leading axis, whether the layers are scanned or unrolled, until unstack.py takes them apart.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from chexmix_jax.models.adapter import with_rows
from chexmix_jax.models.cache import Cache, LayerCache
from chexmix_jax.models.classifier import Classifier, picture_means
from chexmix_jax.models.dot import dot_general
from chexmix_jax.models.layer import Block, TransformerConfig
from chexmix_jax.models.quantization import dequantise_layer
from chexmix_jax.parallel.devices import platform
from chexmix_jax.parallel.sharding import constrain

Params = dict[str, Any]

# What is kept for the backward pass, by the name that `checkpoint_name` gives it.
_KEPT = {
    "projections": ("q", "k", "v", "attention", "up"),
    "attention": ("attention",),
    "full": (),
}


class Ends(nnx.Module):
  """What stands before and after the layers: embedding, final norm, biased untied output.

  Beside them the classifier, where there is one.
  """

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(config.dtype)
    self.embed = nnx.Embed(config.vocab_size, config.width, dtype=dtype, rngs=rngs)
    self.final_norm = nnx.LayerNorm(
        config.width, epsilon=config.norm_eps, dtype=dtype, rngs=rngs
    )
    self.lm_head = nnx.Linear(
        config.width, config.vocab_size, dtype=dtype, dot_general=dot_general, rngs=rngs
    )
    if config.classifier is not None:
      self.classifier = Classifier(config.classifier, config.width, rngs=rngs)


@functools.cache
def _graphdef(module: type[Block] | type[Ends], config: TransformerConfig):
  return nnx.split(nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0))))[0]


def init_params(config: TransformerConfig, key: jax.Array) -> Params:
  """Fresh parameters; call under jax.jit with out_shardings to have them born sharded.

  With an adapter its additions are among them, but for rows, which are taken from the base.

  Kernels and embeddings have variance 1 / fan-in (a standard deviation of 0.02 at the published
  width); what writes into the residual stream is scaled by 1/sqrt(2·L) (Radford et al. 2019).
  """

  def init(module, key):
    return nnx.to_pure_dict(nnx.state(module(config, rngs=nnx.Rngs(key))))

  ends_key, layers_key = jax.random.split(key)
  layer_keys = jax.random.split(layers_key, config.num_layers)
  layers = jax.vmap(functools.partial(init, Block))(layer_keys)
  residual_scale = (2 * config.num_layers) ** -0.5
  layers["attn"]["out"]["kernel"] *= residual_scale
  layers["mlp"]["down"]["kernel"] *= residual_scale
  return {**init(Ends, ends_key), "layers": layers}


def abstract_params(config: TransformerConfig) -> Params:
  """Shapes and dtypes of the parameters, without making them."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


class Transformer:
  """The decoder over given parameters; make it inside the jitted function that uses it.

  Token and position arrays are int32 (B, T). Positions default to 0, 1, …; segment ids keep packed
  documents apart and default to one document a row. A right-padded row needs neither: causal
  attention never looks ahead.
  """

  def __init__(self, config: TransformerConfig, params: Params):
    self.config = config
    if config.adapter is not None:
      params = with_rows(config.adapter, params)
    self._layers = params["layers"]
    self._ends_params = {name: value for name, value in params.items() if name != "layers"}
    self._ends = nnx.merge(_graphdef(Ends, config), self._ends_params)

  def __call__(self, tokens_BT, positions_BT=None, segment_ids_BT=None, *, dropout_key=None):
    """Next-token logits, float32 (B, T, V); dropout only where a key is given."""
    x_BTD, _ = self._run(tokens_BT, positions_BT, segment_ids_BT, dropout_key=dropout_key)
    return self._logits(x_BTD)

  @property
  def head(self) -> dict[str, jax.Array]:
    """Kernel (D, V) and bias (V,) of the output layer."""
    return self._ends_params["lm_head"]

  def last_hidden(self, tokens_BT, positions_BT=None, segment_ids_BT=None, *, dropout_key=None):
    """(B, T, D): what the output layer `lm_head` makes logits of."""
    x_BTD, _ = self._run(tokens_BT, positions_BT, segment_ids_BT, dropout_key=dropout_key)
    return self._ends.final_norm(x_BTD)

  def hidden_states(self, tokens_BT, positions_BT=None, segment_ids_BT=None, *, keep=lambda x: x):
    """(L+1, B, T, D): embeddings, outputs of all layers but the last, final norm of the last's.

    With `keep`, what it makes of each of the L+1 arrays (B, T, D) instead, stacked; only that is
    held in memory.
    """
    last_BTD, kept_L = self._run(tokens_BT, positions_BT, segment_ids_BT, keep=keep)
    first, last = keep(self._embed(tokens_BT)), keep(self._ends.final_norm(last_BTD))
    return jnp.concatenate([first[None], kept_L[:-1], last[None]])

  def classify(
      self, tokens_BT, is_image_BT, positions_BT, segment_ids_BT, num_segments, *, dropout_key=None
  ):
    """The classifier's log-odds, float32 (B, S, F), of what `picture_states` gives."""
    means_BSD = self.picture_states(
        tokens_BT, is_image_BT, positions_BT, segment_ids_BT, num_segments, dropout_key=dropout_key
    )
    return self._ends.classifier(means_BSD)

  def picture_states(
      self, tokens_BT, is_image_BT, positions_BT, segment_ids_BT, num_segments, *, dropout_key=None
  ):
    """What the classifier reads of each of S documents of a row, float32 (B, S, D).

    The mean hidden state of its layer where `is_image_BT`; layers behind that are not computed.
    """
    config = self.config
    layer = config.classifier.layer % (config.num_layers + 1)
    hidden_BTD, _ = self._run(
        tokens_BT, positions_BT, segment_ids_BT, dropout_key=dropout_key, num_layers=layer
    )
    if layer == config.num_layers:
      hidden_BTD = self._ends.final_norm(hidden_BTD)
    return picture_means(hidden_BTD, is_image_BT, segment_ids_BT, num_segments)

  def init_cache(self, batch: int, length: int) -> Cache:
    """An empty cache for `length` tokens a row."""
    config = self.config
    zeros_BHSK = jnp.zeros((batch, config.num_heads, length, config.head_dim))
    layers_BHSK = (self._cached(zeros_BHSK),) * config.num_layers
    return Cache(layers_BHSK, layers_BHSK)

  def widen_cache(self, cache: Cache, times: int, more: int) -> Cache:
    """The cache with `times` copies of each row, one after the other, and `more` empty slots."""

    def widen(kv):
      kv_BHSK = jnp.repeat(kv.reshape(-1, *kv.shape[-3:]), times, axis=0)
      return self._cached(jnp.pad(kv_BHSK, ((0, 0), (0, 0), (0, more), (0, 0))))

    return jax.tree.map(widen, cache)

  def _cached(self, kv_BHSK):
    """As the cache holds them."""
    kv_BHSK = kv_BHSK.astype("float32" if platform() == "cpu" else self.config.dtype)
    kv_BHSK = constrain(kv_BHSK, ("batch", "heads", None, None))
    return kv_BHSK[0] if len(kv_BHSK) == 1 else kv_BHSK

  def prefill(self, tokens_BT, length: int) -> tuple[jax.Array, Cache]:
    """Logits (B, T, V) of tokens from position 0 on, and a cache of `length` slots with them.

    What `decode` gives with an empty cache, but no token looks at slots behind its own. The slot of
    a token is its position.
    """
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    room = ((0, 0), (0, 0), (0, length - tokens_BT.shape[1]), (0, 0))
    x_BTD = self._embed(tokens_BT)
    layers = []
    for i in range(self.config.num_layers):
      block, x_BTD = self._block(i, x_BTD)
      x_BTD, kv_BTHK = block(x_BTD, positions_BT, None)
      layers.append([self._cached(jnp.pad(new.swapaxes(1, 2), room)) for new in kv_BTHK])
    return self._logits(x_BTD), Cache(*zip(*layers, strict=True))

  def decode(
      self, tokens_BT, positions_BT, cache: Cache, slot=None, mask_BTS=None
  ) -> tuple[jax.Array, Cache]:
    """Logits (B, T, V) of tokens that follow what the cache holds, and the cache with them.

    All rows write to the same T slots, from `slot` (an int32) on, and a token sees the slots that
    the boolean mask allows. By default a slot is a position: positions must then be consecutive and
    alike in all rows, and a token sees all up to its own.
    """
    if slot is None:
      slot = positions_BT[0, 0]
    if mask_BTS is None:
      mask_BTS = jnp.arange(cache.k_BHSK[0].shape[-2]) <= positions_BT[..., None]
    model, tokens_BT = self._once_there_is(tokens_BT)
    x_BTD = model._embed(tokens_BT)
    layers = []
    for i, kv_BHSK in enumerate(zip(cache.k_BHSK, cache.v_BHSK, strict=True)):
      layer_cache = LayerCache(kv_BHSK, slot, mask_BTS)
      block, x_BTD = self._block(i, x_BTD)
      x_BTD, kv_BHSK = block(x_BTD, positions_BT, None, layer_cache)
      layers.append(kv_BHSK)
    model, x_BTD = self._once_there_is(x_BTD)
    return model._logits(x_BTD), Cache(*zip(*layers, strict=True))

  def _once_there_is(self, x: jax.Array) -> tuple["Transformer", jax.Array]:
    """As `_block`, of what stands before and after the layers."""
    ends_params, x = jax.lax.optimization_barrier((self._ends_params, x))
    return Transformer(self.config, {**ends_params, "layers": self._layers}), x

  def _block(self, layer: int, x_BTD: jax.Array) -> tuple[Block, jax.Array]:
    """A layer, and its input with it: nothing is made of its parameters before the input is there.

    XLA would else keep what it makes of all layers' parameters in memory, for a whole generation.
    """
    is_apart = isinstance(self._layers, tuple)
    layers = self._layers
    params = layers[layer] if is_apart else jax.tree.map(operator.itemgetter(layer), layers)
    params, x_BTD = jax.lax.optimization_barrier((params, x_BTD))
    return nnx.merge(_graphdef(Block, self.config), params), x_BTD

  def _embed(self, tokens_BT):
    # Gathered over fsdp first, as every kernel is: a lookup in a table that is split along the
    # width would have to be sharded anew.
    table_VD = self._ends.embed.embedding[...].astype(jnp.dtype(self.config.dtype))
    x_BTD = constrain(table_VD, ("vocab", None))[tokens_BT]
    return constrain(x_BTD, ("batch", None, None))

  def _logits(self, x_BTD):
    logits_BTV = self._ends.lm_head(self._ends.final_norm(x_BTD))
    return constrain(logits_BTV, ("batch", None, "vocab")).astype(jnp.float32)

  def _run(
      self, tokens_BT, positions_BT, segment_ids_BT, dropout_key=None, keep=lambda x: None,
      num_layers=None,
  ):  # fmt: skip
    """Embeds and runs the layers: (B, T, D), and what is kept of every layer's output.

    With `num_layers` only so many, the first.
    """
    config = self.config
    if positions_BT is None:
      positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    graphdef = _graphdef(Block, config)
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_layers)

    def run_layer(x_BTD, params, key):
      params = dequantise_layer(params, (config.num_heads, config.head_dim), config.dtype)
      x_BTD, _ = nnx.merge(graphdef, params)(x_BTD, positions_BT, segment_ids_BT, None, key)
      return x_BTD, keep(x_BTD)

    def body(x_BTD, layer):
      params, key, is_run = layer
      if num_layers is None:
        return run_layer(x_BTD, params, key)
      return jax.lax.cond(is_run, run_layer, lambda x_BTD, *_: (x_BTD, None), x_BTD, params, key)

    if config.remat != "none":
      policy = jax.checkpoint_policies.save_only_these_names(*_KEPT[config.remat])
      body = jax.checkpoint(body, prevent_cse=not config.scan_layers, policy=policy)
    x_BTD = self._embed(tokens_BT)
    if isinstance(self._layers, tuple):
      kept = []
      for number, params in enumerate(self._layers[:num_layers]):
        x_BTD, kept_one = body(x_BTD, (params, None if keys is None else keys[number], True))
        kept.append(kept_one)
      return x_BTD, jax.tree.map(lambda *parts: jnp.stack(parts), *kept) if kept else None
    # To take the first layers out of the stack would copy them.
    is_run_L = None if num_layers is None else jnp.arange(config.num_layers) < num_layers
    layers = (self._layers, keys, is_run_L)
    return jax.lax.scan(body, x_BTD, layers, unroll=not config.scan_layers)
