"""The decoder of CheXmix: Phi-2's parallel block with partial rotary embedding and biases.

Shape suffixes: B batch, T tokens, S cached tokens, D width, H heads, K head width, L layers,
V vocabulary. Parameters are a plain nested dict of arrays; those of the layers are stacked on a
leading axis, whether the layers are scanned or unrolled, until unstack.py takes them apart.
"""

import dataclasses
import functools
import operator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from chexmix_jax.errors import UserError
from chexmix_jax.models.adapter import AdapterConfig, Projection, with_rows
from chexmix_jax.models.attention import Backend, attention, causal_attention
from chexmix_jax.models.cache import Cache, LayerCache, write
from chexmix_jax.models.classifier import Classifier, ClassifierConfig, picture_means
from chexmix_jax.models.dot import dot_general
from chexmix_jax.models.dropout import dropout
from chexmix_jax.models.quantization import dequantise_layer
from chexmix_jax.models.rotary import rotate
from chexmix_jax.parallel.devices import platform
from chexmix_jax.parallel.sharding import constrain

Params = dict[str, Any]
Remat = Literal["none", "projections", "attention", "full"]

# What is kept for the backward pass, by the name that `checkpoint_name` gives it.
_KEPT = {
    "projections": ("q", "k", "v", "attention", "up"),
    "attention": ("attention",),
    "full": (),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Shape and arithmetic of the decoder; the defaults are the published model's.

  Attributes:
    rotary_dim: leading dimensions of each head that are rotated (Su et al. 2021), even.
    dropout: rate on the outputs of attention and MLP, before the residual sum.
    qk_norm: LayerNorm on every head's queries and keys.
    dtype: of the computation; parameters are float32, or bfloat16 where a checkpoint holds them so.
    attention: how packed rows are attended to; "auto" is the fastest that is right on the devices.
    scan_layers: compile one layer and loop over it, or all of them unrolled.
    remat: what the backward pass of a layer computes again: "none", nothing; "projections", all but
      the projections and the attention, so that no matrix product is done twice; "attention", all
      but the attention; "full", all.
    adapter: what is trained instead of the model, for a run that adapts one; None trains it all.
    classifier: that is trained, with the model or its adapter, instead of the next tokens; or None.
  """

  vocab_size: int = 58562
  num_layers: int = 32
  width: int = 2560
  num_heads: int = 32
  mlp_dim: int = 10240
  rotary_dim: int = 32
  rope_base: float = 10000.0
  norm_eps: float = 1e-5
  dropout: float = 0.1
  qk_norm: bool = False
  dtype: Literal["float32", "bfloat16"] = "float32"
  attention: Backend = "auto"
  scan_layers: bool = True
  remat: Remat = "none"
  adapter: AdapterConfig | None = None
  classifier: ClassifierConfig | None = None

  def __post_init__(self):
    if self.width % self.num_heads:
      raise UserError(
          f"model.width={self.width} must be a multiple of model.num_heads={self.num_heads}."
      )
    if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
      raise UserError(
          f"model.rotary_dim={self.rotary_dim} must be even and at most the head width"
          f" {self.head_dim}."
      )
    if self.adapter and self.adapter.rows and self.adapter.rows[1] > self.vocab_size > 0:
      raise UserError(
          f"adapter.rows={self.adapter.rows} go beyond the {self.vocab_size} ids of the vocabulary."
      )
    if self.classifier and self.classifier.layer > self.num_layers:
      raise UserError(
          f"classifier.layer={self.classifier.layer} is beyond the {self.num_layers} layers."
      )

  @property
  def head_dim(self) -> int:
    return self.width // self.num_heads


class Attention(nnx.Module):
  """Projections around attention, with biases.

  Also gives the keys and values: of the tokens, (B, T, H, K), or those of the cache with them.
  """

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    heads = (config.num_heads, config.head_dim)
    dtype = jnp.dtype(config.dtype)
    width = (config.width,)

    def projection(name, inputs, outputs):
      return Projection(f"attn.{name}", inputs, outputs, dtype, config.adapter, rngs=rngs)

    self.q = projection("q", width, heads)
    self.k = projection("k", width, heads)
    self.v = projection("v", width, heads)
    self.out = projection("out", heads, width)
    if config.qk_norm:
      norm = functools.partial(nnx.LayerNorm, config.head_dim, epsilon=config.norm_eps, rngs=rngs)
      self.q_norm, self.k_norm = norm(), norm()

  def __call__(self, x_BTD, positions_BT, segment_ids_BT, cache, keys):
    config = self.config
    q_BTHK, k_BTHK, v_BTHK = (layer(x_BTD, keys[0]) for layer in (self.q, self.k, self.v))
    if config.qk_norm:
      q_BTHK = self.q_norm(q_BTHK).astype(x_BTD.dtype)
      k_BTHK = self.k_norm(k_BTHK).astype(x_BTD.dtype)
    q_BTHK = rotate(q_BTHK, positions_BT, config.rotary_dim, config.rope_base)
    k_BTHK = rotate(k_BTHK, positions_BT, config.rotary_dim, config.rope_base)
    q_BTHK = constrain(q_BTHK, ("batch", None, "heads", None))
    if cache is None:
      q_BTHK, k_BTHK, v_BTHK = map(checkpoint_name, (q_BTHK, k_BTHK, v_BTHK), "qkv")
      mixed_BTHK = causal_attention(q_BTHK, k_BTHK, v_BTHK, segment_ids_BT, config.attention)
      mixed_BTHK = checkpoint_name(mixed_BTHK, "attention")
      kv = k_BTHK, v_BTHK
    else:
      kv = tuple(
          write(old, new.swapaxes(1, 2), cache.slot)
          for old, new in zip(cache.kv_BHSK, (k_BTHK, v_BTHK), strict=True)
      )
      mixed_BTHK = attention(q_BTHK, *kv, cache.mask_BTS, kv_axes="BHSK"[-kv[0].ndim :])
      mixed_BTHK = mixed_BTHK.astype(x_BTD.dtype)
    return self.out(mixed_BTHK, keys[1]), kv


class MLP(nnx.Module):
  """Two linear layers around the tanh form of GELU (`gelu_new`)."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    dtype, sizes = jnp.dtype(config.dtype), ((config.width,), (config.mlp_dim,))
    self.up = Projection("mlp.up", *sizes, dtype, config.adapter, rngs=rngs)
    self.down = Projection("mlp.down", *sizes[::-1], dtype, config.adapter, rngs=rngs)

  def __call__(self, x_BTD, keys):
    up_BTF = checkpoint_name(self.up(x_BTD, keys[0]), "up")
    return self.down(jax.nn.gelu(up_BTF, approximate=True), keys[1])


class Block(nnx.Module):
  """One LayerNorm feeds attention and MLP in parallel: x + attn(ln(x)) + mlp(ln(x))."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.rate = config.dropout
    self.norm = nnx.LayerNorm(
        config.width, epsilon=config.norm_eps, dtype=jnp.dtype(config.dtype), rngs=rngs
    )
    self.attn = Attention(config, rngs=rngs)
    self.mlp = MLP(config, rngs=rngs)

  def __call__(self, x_BTD, positions_BT, segment_ids_BT, cache=None, dropout_key=None):
    keys = (None,) * 2 if dropout_key is None else jax.random.split(dropout_key)
    # Of the additions' inputs: the normed one, that of `out` and that of `down`.
    added = [None if dropout_key is None else jax.random.fold_in(dropout_key, i) for i in range(3)]
    normed_BTD = self.norm(x_BTD)
    attn_BTD, kv = self.attn(normed_BTD, positions_BT, segment_ids_BT, cache, added[:2])
    mlp_BTD = self.mlp(normed_BTD, added[::2])
    x_BTD = x_BTD + dropout(attn_BTD, self.rate, keys[0]) + dropout(mlp_BTD, self.rate, keys[1])
    return constrain(x_BTD, ("batch", None, None)), kv


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
