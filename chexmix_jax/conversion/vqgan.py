"""Names and layouts of taming-transformers' VQModel beside ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.models.vqgan import VQGANConfig

_RES = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
_ATTN = {"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"}
_MIDDLE = {"block1": "block_1", "attn": "attn_1", "block2": "block_2"}


def params_from_torch(
    config: VQGANConfig, tensors: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Our parameters, float32, from a VQModel's tensors by their torch names.

  Tensors under `loss.` are only needed for its training and are passed over. Raises UserError that
  lists every missing and unexpected tensor.
  """
  remaining = {name for name in tensors if not name.startswith("loss.")}
  missing: list[str] = []

  def take(name: str) -> np.ndarray:
    if name not in remaining:
      missing.append(name)
      return np.zeros((), np.float32)
    remaining.remove(name)
    return np.asarray(tensors[name], np.float32)

  def module(name: str) -> dict[str, np.ndarray]:
    weight, bias = take(f"{name}.weight"), take(f"{name}.bias")
    if weight.ndim == 4:
      return {"kernel": weight.transpose(2, 3, 1, 0), "bias": bias}  # OIHW to HWIO.
    return {"scale": weight, "bias": bias}

  def res_block(name: str) -> dict[str, Any]:
    block: dict[str, Any] = {ours: module(f"{name}.{theirs}") for ours, theirs in _RES.items()}
    if f"{name}.nin_shortcut.weight" in remaining:
      block["shortcut"] = module(f"{name}.nin_shortcut")
    return block

  def attn_block(name: str) -> dict[str, Any]:
    return {ours: module(f"{name}.{theirs}") for ours, theirs in _ATTN.items()}

  def level(name: str, blocks: int, side: int) -> dict[str, Any]:
    tree = {"blocks": {str(i): res_block(f"{name}.block.{i}") for i in range(blocks)}}
    if side in config.attention_resolutions:
      tree["attns"] = {str(i): attn_block(f"{name}.attn.{i}") for i in range(blocks)}
    return tree

  def half(name: str, levels: str, blocks: int) -> dict[str, Any]:
    count = len(config.channel_multipliers)
    middle = {
        ours: (attn_block if ours == "attn" else res_block)(f"{name}.mid.{theirs}")
        for ours, theirs in _MIDDLE.items()
    }
    return {
        "conv_in": module(f"{name}.conv_in"),
        "middle": middle,
        "levels": {
            str(i): level(f"{name}.{levels}.{i}", blocks, config.sides[i])
            for i in range(count)
        },
        "norm_out": module(f"{name}.norm_out"),
        "conv_out": module(f"{name}.conv_out"),
    }

  halvings = range(len(config.channel_multipliers) - 1)
  encoder = half("encoder", "down", config.num_res_blocks)
  encoder["downs"] = {str(i): module(f"encoder.down.{i}.downsample.conv") for i in halvings}
  decoder = half("decoder", "up", config.num_res_blocks + 1)
  # Theirs sits in the level that it leaves, ours is numbered by the level that it leads to.
  decoder["ups"] = {str(i): module(f"decoder.up.{i + 1}.upsample.conv") for i in halvings}
  params = {
      "encoder": encoder,
      "decoder": decoder,
      "quant_conv": module("quant_conv"),
      "post_quant_conv": module("post_quant_conv"),
      "codebook": take("quantize.embedding.weight"),
  }
  if missing:
    raise UserError(f"The checkpoint lacks {', '.join(missing)}; is it of another shape?")
  if remaining:
    raise UserError(f"The checkpoint has unexpected tensors {', '.join(sorted(remaining))}.")
  return params
