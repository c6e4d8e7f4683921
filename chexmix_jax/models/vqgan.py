"""The image tokenizer's network: a convolutional autoencoder with a codebook (VQGAN).

Shape suffixes: N batch, H height, W width, C channels, E embedding; h, w of the code grid.
The shape is that of the VQModel of Esser et al. 2021 (Taming Transformers, arXiv 2012.09841) as
Chameleon uses it. Parameters are a plain nested dict; lists of blocks are dicts keyed "0", "1", ….
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from chexmix_jax.errors import UserError

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
  """Shape of the autoencoder; the defaults are the published model's.

  Attributes:
    resolution: side of the picture in pixels.
    patch: side of the squares of pixels that the first level sees as channels of one place; 1 in
      the published model, 2 is some three times cheaper.
    width: channels of the first level.
    channel_multipliers: of `width`, a level each; every level but the last halves the picture.
    num_res_blocks: residual blocks a level; the decoder has one more.
    attention_resolutions: sides of the levels whose blocks are followed by attention; the middle
      has attention always.
    num_groups: of every GroupNorm.
    commitment: weight of the encoder's part of the embedding loss (β).
  """

  resolution: int = 512
  in_channels: int = 3
  patch: int = 1
  width: int = 128
  channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  num_res_blocks: int = 2
  attention_resolutions: tuple[int, ...] = ()
  z_channels: int = 256
  embed_dim: int = 256
  num_codes: int = 8192
  num_groups: int = 32
  commitment: float = 0.25
  dtype: Literal["float32", "bfloat16"] = "float32"

  def __post_init__(self):
    if self.resolution % self.downsampling:
      raise UserError(
          f"resolution={self.resolution} must be a multiple of {self.downsampling}, the image"
          " tokenizer's downsampling."
      )
    for multiplier in self.channel_multipliers:
      if self.width * multiplier % self.num_groups:
        raise UserError(
            f"width={self.width} times {multiplier} must be a multiple of"
            f" num_groups={self.num_groups}."
        )

  @property
  def downsampling(self) -> int:
    """Pixels a side of one code."""
    return self.patch * 2 ** (len(self.channel_multipliers) - 1)

  @property
  def sides(self) -> tuple[int, ...]:
    """Places along a side of each level."""
    return tuple(
        self.resolution // self.patch >> i for i in range(len(self.channel_multipliers))
    )

  @property
  def grid(self) -> tuple[int, int]:
    """Codes of a picture, (h, w)."""
    side = self.resolution // self.downsampling
    return side, side


def _conv(config, rngs, cin, cout, kernel=3, **kwargs):
  return nnx.Conv(
      cin, cout, (kernel, kernel), dtype=jnp.dtype(config.dtype), rngs=rngs, **kwargs
  )


def _norm(config, rngs, channels):
  return GroupNorm(
      channels, config.num_groups, epsilon=1e-6, dtype=jnp.dtype(config.dtype), rngs=rngs
  )


class GroupNorm(nnx.GroupNorm):
  """The same numbers, from sums over the pixels of each channel first.

  A sum over pixels and a group's channels at once has a stride in the middle: ten times slower on a
  CPU.
  """

  def __call__(self, x_NHWC):
    x = x_NHWC.astype(jnp.float32)
    n, _, _, channels = x.shape

    def of_group(x_NC):
      mean_NG1 = x_NC.reshape(n, self.num_groups, -1).mean(-1, keepdims=True)
      shape = (n, self.num_groups, channels // self.num_groups)
      return jnp.broadcast_to(mean_NG1, shape).reshape(n, 1, 1, channels)

    mean, square = of_group(x.mean((1, 2))), of_group((x * x).mean((1, 2)))
    scale = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon) * self.scale[...]
    return ((x - mean) * scale + self.bias[...]).astype(self.dtype)


class ResBlock(nnx.Module):
  """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1 x 1 shortcut where channels change."""

  def __init__(self, config, cin, cout, *, rngs):
    self.norm1, self.conv1 = _norm(config, rngs, cin), _conv(config, rngs, cin, cout)
    self.norm2, self.conv2 = _norm(config, rngs, cout), _conv(config, rngs, cout, cout)
    self.shortcut = _conv(config, rngs, cin, cout, 1) if cin != cout else None

  def __call__(self, x):
    y = self.conv1(jax.nn.swish(self.norm1(x)))
    y = self.conv2(jax.nn.swish(self.norm2(y)))
    return (x if self.shortcut is None else self.shortcut(x)) + y


class AttnBlock(nnx.Module):
  """Single-head attention over all positions, scaled by C^-0.5."""

  def __init__(self, config, channels, *, rngs):
    self.norm = _norm(config, rngs, channels)
    self.q, self.k, self.v, self.out = (
        _conv(config, rngs, channels, channels, 1) for _ in range(4)
    )

  def __call__(self, x_NHWC):
    n, h, w, c = x_NHWC.shape
    y = self.norm(x_NHWC)
    q, k, v = (f(y).reshape(n, h * w, c) for f in (self.q, self.k, self.v))
    logits = jnp.einsum("ntc,nsc->nts", q, k, preferred_element_type=jnp.float32) * c**-0.5
    mixed = jnp.einsum("nts,nsc->ntc", jax.nn.softmax(logits).astype(v.dtype), v)
    return x_NHWC + self.out(mixed.reshape(n, h, w, c))


class Middle(nnx.Module):
  """Residual block, attention, residual block."""

  def __init__(self, config, channels, *, rngs):
    self.block1 = ResBlock(config, channels, channels, rngs=rngs)
    self.attn = AttnBlock(config, channels, rngs=rngs)
    self.block2 = ResBlock(config, channels, channels, rngs=rngs)

  def __call__(self, x):
    return self.block2(self.attn(self.block1(x)))


class Level(nnx.Module):
  """The residual blocks of one resolution, each followed by attention where the config says so."""

  def __init__(self, config, cin, cout, blocks, side, *, rngs):
    self.blocks = nnx.List(
        ResBlock(config, cin if i == 0 else cout, cout, rngs=rngs) for i in range(blocks)
    )
    with_attention = side in config.attention_resolutions
    self.attns = nnx.List(
        AttnBlock(config, cout, rngs=rngs) for _ in range(blocks if with_attention else 0)
    )

  def __call__(self, x):
    for i, block in enumerate(self.blocks):
      x = block(x)
      if len(self.attns):
        x = self.attns[i](x)
    return x


class Encoder(nnx.Module):
  """Pixels (N, H, W, C) to features (N, h, w, z_channels)."""

  def __init__(self, config, *, rngs):
    widths = [config.width * m for m in config.channel_multipliers]
    self.patch = config.patch
    self.conv_in = _conv(config, rngs, config.in_channels * config.patch**2, config.width)
    inputs = [config.width, *widths[:-1]]
    self.levels = nnx.List(
        Level(config, cin, cout, config.num_res_blocks, side, rngs=rngs)
        for cin, cout, side in zip(inputs, widths, config.sides, strict=True)
    )
    # The picture is padded by one at the right and bottom, then halved without further padding.
    self.downs = nnx.List(
        _conv(config, rngs, c, c, strides=2, padding=((0, 1), (0, 1))) for c in widths[:-1]
    )
    self.middle = Middle(config, widths[-1], rngs=rngs)
    self.norm_out = _norm(config, rngs, widths[-1])
    self.conv_out = _conv(config, rngs, widths[-1], config.z_channels)

  def __call__(self, x):
    x = self.conv_in(_fold(x, self.patch))
    for i, level in enumerate(self.levels):
      x = level(x)
      if i < len(self.downs):
        x = self.downs[i](x)
    return self.conv_out(jax.nn.swish(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
  """Features (N, h, w, z_channels) to pixels (N, H, W, C); `levels` are indexed by resolution."""

  def __init__(self, config, *, rngs):
    widths = [config.width * m for m in config.channel_multipliers]
    self.conv_in = _conv(config, rngs, config.z_channels, widths[-1])
    self.middle = Middle(config, widths[-1], rngs=rngs)
    inputs = [*widths[1:], widths[-1]]
    self.levels = nnx.List(
        Level(config, cin, cout, config.num_res_blocks + 1, side, rngs=rngs)
        for cin, cout, side in zip(inputs, widths, config.sides, strict=True)
    )
    self.ups = nnx.List(_conv(config, rngs, c, c) for c in widths[1:])  # ups[i] leads to level i.
    self.norm_out = _norm(config, rngs, config.width * config.channel_multipliers[0])
    self.patch = config.patch
    self.conv_out = _conv(config, rngs, widths[0], config.in_channels * config.patch**2)

  def __call__(self, x):
    x = self.middle(self.conv_in(x))
    for i in reversed(range(len(self.levels))):
      x = self.levels[i](x)
      if i > 0:
        x = self.ups[i - 1](jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
    return _unfold(self.conv_out(jax.nn.swish(self.norm_out(x))), self.patch)


def _fold(x_NHWC, patch):
  """Squares of pixels as channels: (N, H/p, W/p, C·p²)."""
  n, h, w, c = x_NHWC.shape
  x = x_NHWC.reshape(n, h // patch, patch, w // patch, patch, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // patch, w // patch, c * patch**2)


def _unfold(x_NHWC, patch):
  """The inverse of _fold."""
  n, h, w, c = x_NHWC.shape
  x = x_NHWC.reshape(n, h, w, patch, patch, c // patch**2)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * patch, w * patch, c // patch**2)


class VQGAN(nnx.Module):
  """Encoder, codebook and decoder. Pixels are float (N, H, W, C) in [-1, 1]."""

  def __init__(self, config: VQGANConfig, *, rngs: nnx.Rngs):
    self.encoder = Encoder(config, rngs=rngs)
    self.decoder = Decoder(config, rngs=rngs)
    self.quant_conv = _conv(config, rngs, config.z_channels, config.embed_dim, 1)
    self.post_quant_conv = _conv(config, rngs, config.embed_dim, config.z_channels, 1)
    self.codebook = nnx.Param(jnp.zeros((config.num_codes, config.embed_dim)))

  def encode(self, x_NHWC):
    """Features before quantisation, float32 (N, h, w, embed_dim)."""
    return self.quant_conv(self.encoder(x_NHWC)).astype(jnp.float32)

  def quantize(self, z_NhwE):
    """The nearest codes, int32 (N, h, w); the lower id where two are equally near."""
    codebook_KE = self.codebook[...]
    # |z - e|^2 without |z|^2, which is the same for every code.
    distances = jnp.sum(codebook_KE**2, -1) - 2 * jnp.einsum(
        "NhwE,KE->NhwK", z_NhwE, codebook_KE, precision="highest"
    )
    return jnp.argmin(distances, -1).astype(jnp.int32)

  def lookup(self, ids_Nhw):
    """Codebook entries, float32 (N, h, w, embed_dim)."""
    return self.codebook[...][ids_Nhw]

  def decode(self, zq_NhwE):
    """Pixels of quantised features, float32, not clamped."""
    return self.decoder(self.post_quant_conv(zq_NhwE)).astype(jnp.float32)


@functools.cache
def _shape(config: VQGANConfig):
  """The network's graph definition and its abstract state."""
  return nnx.split(nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0))))


def abstract_params(config: VQGANConfig) -> Params:
  """Shapes and dtypes of the parameters, without making them."""
  return _keys_as(str, nnx.to_pure_dict(_shape(config)[1]))


def init_params(config: VQGANConfig, key: jax.Array) -> Params:
  """Fresh parameters: kernels normal with variance 1 / fan-in, codebook uniform as in VQModel.

  All kernels are slices of one draw: with a draw for each, XLA compiles for longer than a small
  network trains.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(abstract_params(config))
  kernel_key, codebook_key = jax.random.split(key)
  total = sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")
  normal = jax.lax.optimization_barrier(jax.random.normal(kernel_key, (total,)))
  bound, start, params = 1 / config.num_codes, 0, []
  for path, leaf in leaves:
    name = path[-1].key
    if name == "kernel":
      drawn = normal[start : start + leaf.size].reshape(leaf.shape)
      params.append(drawn * math.prod(leaf.shape[:-1]) ** -0.5)
      start += leaf.size
    elif name == "codebook":
      params.append(jax.random.uniform(codebook_key, leaf.shape, minval=-bound, maxval=bound))
    else:
      params.append(jnp.full(leaf.shape, float(name == "scale"), leaf.dtype))
  return jax.tree.unflatten(tree, params)


def bind(config: VQGANConfig, params: Params) -> VQGAN:
  """The network over given parameters; make it inside the jitted function that uses it."""
  return nnx.merge(_shape(config)[0], _keys_as(int, params))


def _keys_as(kind: type, tree: Any) -> Any:
  """The tree with list indices as str (as checkpoints keep them) or int (as NNX does)."""
  if not isinstance(tree, dict):
    return tree
  return {
      kind(key) if str(key).isdecimal() else key: _keys_as(kind, value)
      for key, value in tree.items()
  }
