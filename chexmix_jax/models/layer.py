"""One layer of the decoder, Phi-2's parallel block, and the shape that all layers share.

Shape suffixes as in transformer.py.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from chexmix_jax.errors import UserError
from chexmix_jax.models.adapter import AdapterConfig, Projection
from chexmix_jax.models.attention import Backend, attention, causal_attention
from chexmix_jax.models.cache import write
from chexmix_jax.models.classifier import ClassifierConfig
from chexmix_jax.models.dropout import dropout
from chexmix_jax.models.rotary import rotate
from chexmix_jax.parallel.sharding import constrain

Remat = Literal["none", "projections", "attention", "full"]


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
