"""Image tokenizer: pictures to grids of codes and back, with a trained VQGAN."""

import functools
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError
from chexmix_jax.models.vqgan import Params, VQGANConfig, abstract_params, bind

_BATCH = 32
_CPU_PIXELS = 1 << 17  # Of one pass: they fill a CPU's cores, and one picture waits for no others.


class ImageTokenizer:
  """Encodes and decodes in batches of fixed size; the last batch is padded.

  Attributes:
    config: shape of the network.
    grid: (h, w) codes of a picture.
    num_codes: entries of the codebook.
    params: of the network.
    codes_of: fingerprint of the tokenizer whose codebook this one kept while it was adapted; "" of
      one that was not.
  """

  def __init__(self, config: VQGANConfig, params: Params, codes_of: str = ""):
    self.config = config
    self.codes_of = codes_of
    self.grid = config.grid
    self.num_codes = config.num_codes
    self.params = params

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 over the config and all parameters, hex."""
    digest = hashlib.sha256(json.dumps(config_lib.to_dict(self.config), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(self.params)[0]:
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

  @property
  def codes_fingerprint(self) -> str:
    """Equal for tokenizers whose codes mean the same: they have one codebook."""
    return self.codes_of or self.fingerprint

  def encode(self, pixels: np.ndarray) -> np.ndarray:
    """int32 (N, h, w) codes of float32 (N, H, W, C) pixels in [-1, 1].

    Grey pictures (C = 1) are repeated for a network that wants three channels. Raises UserError
    for pictures of another size.
    """
    side, channels = self.config.resolution, self.config.in_channels
    if pixels.shape[1:3] != (side, side) or pixels.shape[3] not in (1, channels):
      raise UserError(
          f"The image tokenizer wants {side} x {side} pixels and {channels} channel(s), not"
          f" {pixels.shape[1:]}; prepare the studies with --size={side}."
      )
    if pixels.shape[3] != channels:
      pixels = np.repeat(pixels, channels, axis=3)
    return self._in_batches(functools.partial(_encode, self.config, self.params), pixels)

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """float32 (N, H, W, C) pixels, clamped to [-1, 1], of int (N, h, w) codes."""
    return self._in_batches(
        functools.partial(_decode, self.config, self.params), np.asarray(codes)
    )

  def _in_batches(self, function, rows: np.ndarray) -> np.ndarray:
    # Of one size whatever their number: another size could tip a code that lies between two.
    size = _BATCH
    if jax.default_backend() == "cpu":
      size = max(1, min(size, _CPU_PIXELS // self.config.resolution**2))
    outputs = []
    for start in range(0, len(rows), size):
      batch = rows[start : start + size]
      padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
      outputs.append(np.asarray(function(padded))[: len(batch)])
    return np.concatenate(outputs)

  def save(self, folder: pathlib.Path) -> None:
    """Writes config.json and params/ (Orbax), whole or not at all."""
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(partial / "params", self.params)
    values = config_lib.to_dict(self.config)
    if self.codes_of:
      values["codes_of"] = self.codes_of
    (partial / "config.json").write_text(json.dumps(values, indent=2))
    os.replace(partial, folder)

  @classmethod
  def load(cls, folder: pathlib.Path) -> "ImageTokenizer":
    """Reads what `save` wrote; UserError for anything else."""
    folder = pathlib.Path(folder).absolute()
    path = folder / "config.json"
    if not path.exists():
      raise UserError(
          f"{folder} is not an image tokenizer (no config.json); name the --output of"
          " train_image_tokenizer."
      )
    try:
      values = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(f"{path} is damaged; train the tokenizer again.") from error
    codes_of = values.pop("codes_of", "") if isinstance(values, dict) else ""
    config = config_lib.build(VQGANConfig, values, str(path))
    abstract = abstract_params(config)
    try:
      saved = ocp.PyTreeCheckpointHandler().metadata(folder / "params").tree
      if _shapes(saved) != _shapes(abstract):
        raise ValueError("other shapes")
      with ocp.StandardCheckpointer() as checkpointer:
        return cls(config, checkpointer.restore(folder / "params", abstract), codes_of)
    except (OSError, ValueError) as error:
      raise UserError(
          f"{folder}/params does not fit its config.json or is damaged; train the tokenizer again."
      ) from error


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: tuple(leaf.shape), tree, is_leaf=lambda x: hasattr(x, "shape"))


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: VQGANConfig, params: Params, pixels: jax.Array) -> jax.Array:
  network = bind(config, params)
  return network.quantize(network.encode(pixels))


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: VQGANConfig, params: Params, codes: jax.Array) -> jax.Array:
  network = bind(config, params)
  return jnp.clip(network.decode(network.lookup(codes)), -1.0, 1.0)
