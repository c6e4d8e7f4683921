"""A trained classifier for PyTorch: what a PhiForCausalLM and PEFT have no place for."""

import functools
import json
import pathlib

import jax
import numpy as np

from chexmix_jax.conversion.tensors import Source, write_file
from chexmix_jax.models.transformer import Params, TransformerConfig


def write_classifier(folder: pathlib.Path, config: TransformerConfig, params: Params) -> None:
  """Writes the classifier of a model into `folder`, where it has one.

    classifier.safetensors   weight (F, D) and bias (F) of a torch.nn.Linear, float32
    classifier.json          findings, the F names; layer, whose hidden states (as transformers'
                             `hidden_states` counts them) it reads

  What it reads is the mean over a picture's codes in `boi · codes · eoi`; what standardises that is
  part of the weights.
  """
  if config.classifier is None:
    return
  ours = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["classifier"])
  kernel_DF = ours["scale"][:, None] * ours["linear"]["kernel"]
  arrays = {"weight": kernel_DF.T, "bias": ours["linear"]["bias"] - ours["mean"] @ kernel_DF}
  sources: list[Source] = [
      (name, array.shape, functools.partial(np.asarray, array)) for name, array in arrays.items()
  ]
  write_file(folder / "classifier.safetensors", sources, np.dtype(np.float32))
  described = {
      "findings": list(config.classifier.findings),
      "layer": config.classifier.layer % (config.num_layers + 1),
  }
  (folder / "classifier.json").write_text(json.dumps(described, indent=2))
