"""A trained classifier for PyTorch: what a PhiForCausalLM and PEFT have no place for."""

import functools
import json
import pathlib

import numpy as np

from chexmix_jax.conversion.tensors import Source, write_file
from chexmix_jax.models.transformer import Params, TransformerConfig


def write_classifier(folder: pathlib.Path, config: TransformerConfig, params: Params) -> None:
  """Writes the classifier of a model into `folder`, where it has one.

    classifier.safetensors   norm.weight, norm.bias (D) of a LayerNorm; linear.weight (F, D),
                             linear.bias (F) of a Linear; float32
    classifier.json          findings, the F names; layer, whose hidden states (as transformers'
                             `hidden_states` counts them) it reads; epsilon, of the norm

  What it reads is the mean over a picture's codes in `boi · codes · eoi`.
  """
  if config.classifier is None:
    return
  norm, linear = params["classifier"]["norm"], params["classifier"]["linear"]
  arrays = {
      "norm.weight": norm["scale"], "norm.bias": norm["bias"],
      "linear.weight": linear["kernel"].T, "linear.bias": linear["bias"],
  }  # fmt: skip
  sources: list[Source] = [
      (name, array.shape, functools.partial(np.asarray, array)) for name, array in arrays.items()
  ]
  write_file(folder / "classifier.safetensors", sources, np.dtype(np.float32))
  described = {
      "findings": list(config.classifier.findings),
      "layer": config.classifier.layer % (config.num_layers + 1),
      "epsilon": config.norm_eps,
  }
  (folder / "classifier.json").write_text(json.dumps(described, indent=2))
