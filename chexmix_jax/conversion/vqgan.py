"""Names and layouts of taming-transformers' VQModel beside ours."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from chexmix_jax.conversion.tensors import Shape, Source, check_shapes
from chexmix_jax.errors import UserError
from chexmix_jax.models.vqgan import VQGANConfig, abstract_params
from chexmix_jax.parallel.sharding import parameter_name

_TRAINING_ONLY = "loss."
# Our name of a part -> theirs, where they differ.
_PARTS = {
    "blocks": "block", "attns": "attn", "middle": "mid", "block1": "block_1", "attn": "attn_1",
    "block2": "block_2", "out": "proj_out", "shortcut": "nin_shortcut", "kernel": "weight",
    "scale": "weight",
}  # fmt: skip


def _torch_name(parameter: str) -> str:
  """Their name of one of our parameters."""
  if parameter == "codebook":
    return "quantize.embedding.weight"
  half, *parts = parameter.split(".")
  if not parts or half not in ("encoder", "decoder"):
    return ".".join(_PARTS.get(part, part) for part in (half, *parts))
  levels = "down" if half == "encoder" else "up"
  if parts[0] == "downs":
    parts[:2] = [levels, parts[1], "downsample", "conv"]
  elif parts[0] == "ups":
    # Theirs sits in the level that it leaves, ours is numbered by the level that it leads to.
    parts[:2] = [levels, str(int(parts[1]) + 1), "upsample", "conv"]
  elif parts[0] == "levels":
    parts[0] = levels
  return ".".join((half, *(_PARTS.get(part, part) for part in parts)))


def _to_torch(array: np.ndarray) -> np.ndarray:
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array  # HWIO to OIHW.


def _to_ours(array: np.ndarray) -> np.ndarray:
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def torch_shapes(config: VQGANConfig) -> dict[str, Shape]:
  """Shapes of a VQModel's tensors by their names."""
  leaves = jax.tree_util.tree_flatten_with_path(abstract_params(config))[0]
  return {_torch_name(parameter_name(path)): _torch_shape(leaf.shape) for path, leaf in leaves}


def params_from_torch(
    config: VQGANConfig, tensors: Mapping[str, np.ndarray], what: str = "The image tokenizer"
) -> dict[str, Any]:
  """Our parameters, float32, from a VQModel's tensors by their torch names.

  Tensors under `loss.` are only needed for its training and are passed over. Raises UserError that
  lists every missing, unexpected and misshapen tensor of `what`.
  """
  found = {k: v.shape for k, v in tensors.items() if not k.startswith(_TRAINING_ONLY)}
  check_shapes(what, torch_shapes(config), found)

  def read(path: Any, _: Any) -> np.ndarray:
    tensor = np.asarray(tensors[_torch_name(parameter_name(path))], np.float32)
    return np.ascontiguousarray(_to_ours(tensor))

  return jax.tree_util.tree_map_with_path(read, abstract_params(config))


def params_to_torch(config: VQGANConfig, params: dict[str, Any]) -> list[Source]:
  """A VQModel's tensors from our parameters; UserError for a network that theirs cannot be."""
  if config.patch != 1 or config.num_groups != 32:
    raise UserError(
        f"An image tokenizer with patch={config.patch} and num_groups={config.num_groups} has no"
        " counterpart in PyTorch, which does 1 and 32; train one with those to take it there."
    )

  def source(path: Any, leaf: Any) -> Source:
    array = _to_torch(np.asarray(leaf))
    return _torch_name(parameter_name(path)), array.shape, lambda: array

  return [source(*pair) for pair in jax.tree_util.tree_flatten_with_path(params)[0]]


def count_training_only(tensors: Mapping[str, np.ndarray]) -> int:
  """How many tensors are only there for training."""
  return sum(name.startswith(_TRAINING_ONLY) for name in tensors)


def config_from_torch(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None, where: str
) -> VQGANConfig:
  """The shape of a VQModel from its tensors and its yaml, as a mapping.

  No tensor tells the resolution: without a yaml it is the published model's. UserError for a yaml
  that says anything else than the tensors.
  """
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  resolution = VQGANConfig().resolution
  wanted: dict[str, Any] = {}
  if settings is not None:
    try:
      outer = settings["model"]["params"]
      inner = outer["ddconfig"]
      resolution, attended = int(inner["resolution"]), list(inner["attn_resolutions"])
      wanted = {
          "embed_dim": outer["embed_dim"], "num_codes": outer["n_embed"],
          "z_channels": inner["z_channels"], "in_channels": inner["in_channels"],
          "width": inner["ch"], "channel_multipliers": tuple(inner["ch_mult"]),
          "num_res_blocks": inner["num_res_blocks"],
      }  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(
          f"The yaml of {where} is not one of a VQModel ({error} in model.params); name another."
      ) from error
  try:
    config = _config_of_shapes(shapes, resolution)
  except (KeyError, ValueError, IndexError) as error:
    raise UserError(
        f"{where} is not the image tokenizer of this family ({error}); name a VQModel's checkpoint."
    ) from error
  if settings is not None:
    wanted["attention_resolutions"] = tuple(side for side in config.sides if side in attended)
  for key, value in wanted.items():
    if getattr(config, key) != value:
      raise UserError(
          f"{where} has {key}={getattr(config, key)} by its tensors, but {value} by its yaml; name"
          " the yaml that it was trained with."
      )
  return config


def _config_of_shapes(shapes: Mapping[str, Shape], resolution: int) -> VQGANConfig:
  width, in_channels = shapes["encoder.conv_in.weight"][:2]
  levels = 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith("encoder.down."))
  blocks = 1 + max(int(n.split(".")[4]) for n in shapes if n.startswith("encoder.down.0.block."))
  outputs = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
  if any(channels % width for channels in outputs):
    raise ValueError(f"levels of {outputs} channels")
  num_codes, embed_dim = shapes["quantize.embedding.weight"]
  config = VQGANConfig(
      resolution=resolution, in_channels=in_channels, width=width,
      channel_multipliers=tuple(channels // width for channels in outputs), num_res_blocks=blocks,
      z_channels=shapes["quant_conv.weight"][1], embed_dim=embed_dim, num_codes=num_codes,
  )  # fmt: skip
  attended = [
      side for i, side in enumerate(config.sides) if f"encoder.down.{i}.attn.0.q.weight" in shapes
  ]
  return dataclasses.replace(config, attention_resolutions=tuple(attended))


def config_to_torch(config: VQGANConfig) -> dict[str, Any]:
  """The yaml of a VQModel, as a mapping."""
  return {
      "model": {
          "target": "taming.models.vqgan.VQModel",
          "params": {
              "embed_dim": config.embed_dim,
              "n_embed": config.num_codes,
              "ddconfig": {
                  "double_z": False,
                  "z_channels": config.z_channels,
                  "resolution": config.resolution,
                  "in_channels": config.in_channels,
                  "out_ch": config.in_channels,
                  "ch": config.width,
                  "ch_mult": list(config.channel_multipliers),
                  "num_res_blocks": config.num_res_blocks,
                  "attn_resolutions": list(config.attention_resolutions),
                  "dropout": 0.0,
              },
          },
      }
  }


def _torch_shape(ours: Shape) -> Shape:
  return (ours[3], ours[2], ours[0], ours[1]) if len(ours) == 4 else ours
