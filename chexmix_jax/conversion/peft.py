"""Adapters as Hugging Face's PEFT writes them, from a run with an adapter and back.

PEFT keeps an addition's A and B as the weights of two linear modules, (R, in) and (out, R), and
DoRA's magnitude as (out), by the name of the module that they change. A module that is trained
whole is kept whole, in `modules_to_save`.
"""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from chexmix_jax import config as config_lib
from chexmix_jax.conversion.classifier import write_classifier
from chexmix_jax.conversion.from_torch import copy_licences
from chexmix_jax.conversion.phi import (
    END_MODULES,
    LAYER_MODULES,
    TorchTensor,
    gather,
    sources,
    torch_tensors,
)
from chexmix_jax.conversion.tensors import SafetensorsFiles, Shape, check_shapes, write_file
from chexmix_jax.errors import UserError
from chexmix_jax.models.adapter import ADDED, PROJECTIONS, AdapterConfig, with_rows
from chexmix_jax.models.transformer import Params, TransformerConfig
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.parallel.sharding import parameter_name, sharded_shapes
from chexmix_jax.training.base import base_dir, describe_base, load_base, read_model
from chexmix_jax.training.checkpoint import load_params, read_job
from chexmix_jax.training.trainable import abstract_trained, join

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_ENDINGS = {
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
# The last part of torch's name of a module, which is what PEFT's settings hold, by our name.
_NAMES = END_MODULES | {f"layers.{ours}": theirs for ours, theirs in LAYER_MODULES.items()}
_NAMES = {ours: theirs.rsplit(".", 1)[-1] for ours, theirs in _NAMES.items()}
_MODULES = {theirs: ours for ours, theirs in _NAMES.items()}

# Settings of PEFT's that do not change what a trained adapter of LoRA or DoRA does.
_WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "inference_mode", "layers_pattern", "loftq_config", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
)  # fmt: skip
_READ = (
    "bias", "init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r",
    "target_modules", "use_dora", "use_rslora",
)  # fmt: skip


def export(
    checkpoint: pathlib.Path,
    output: pathlib.Path,
    step: int | None = None,
    torch_base: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Writes what a run with an adapter trained for `peft.PeftModel`; returns the run's job.

    OUTPUT/adapter_model.safetensors   float32
    OUTPUT/adapter_config.json         a LoraConfig
    OUTPUT/classifier.safetensors …    see write_classifier
    OUTPUT/NOTICE and licences         if the run or its base has them

  The folder is written whole or not at all. Where trained rows or other trained parameters are part
  of a module, that module is kept whole in `modules_to_save`, with what the base has of it; the
  base is read for this only. `torch_base` is the folder of what `to_torch` wrote of the base, for
  PEFT to find by `base_model_name_or_path`. Raises UserError for a run without an adapter, for one
  that PEFT has no place for, and where the base is needed and is gone or another.
  """
  if output.exists():
    raise UserError(f"{output} is there already; name another --output or delete it.")
  if torch_base is not None and not (torch_base / "config.json").exists():
    raise UserError(f"{torch_base} has no config.json; name what to_torch wrote of the base.")
  job = read_job(checkpoint)
  config = read_model(checkpoint)
  adapter = config.adapter
  if adapter is None:
    raise UserError(f"{checkpoint} was trained without model.adapter; use to_torch, for all of it.")
  trained = abstract_trained(config)
  saved = _saved_modules(trained)
  targets = [name for name in PROJECTIONS if adapter.adapts(name)]
  if both := [name for name in targets if f"layers.{name}" in saved]:
    raise UserError(
        f"{checkpoint} trained the bias or kernel of {both[0]} beside its addition, which PEFT has"
        " no place for; use to_torch, which merges all that was trained."
    )
  if not targets:
    raise UserError(
        f"{checkpoint} trained no additions, and PEFT's LoRA wants some; use to_torch, which merges"
        " all that was trained."
    )
  mesh = make_mesh()
  params, _ = load_params(checkpoint, sharded_shapes(mesh, trained), step)
  init = base_dir(checkpoint)
  if saved:
    if read_model(init).vocab_size != config.vocab_size:
      raise UserError(
          f"{checkpoint} has text tokens that its base has no rows for, which PEFT cannot add; use"
          " to_torch, which merges all that was trained."
      )
    params = with_rows(adapter, join(load_base(init, config, mesh, job["base"]), params))

  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  tensors = dict(_named(config, trained, saved))
  write_file(partial / WEIGHTS, sources(tensors, params), np.dtype(np.float32))
  write_classifier(partial, config, params)
  settings = {
      "peft_type": "LORA",
      "task_type": "CAUSAL_LM",
      "base_model_name_or_path": None if torch_base is None else str(torch_base),
      "inference_mode": True,
      "r": adapter.rank,
      "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
      "lora_dropout": adapter.dropout,
      "use_dora": adapter.kind == "dora",
      "bias": "none",
      "target_modules": [_NAMES[f"layers.{name}"] for name in targets],
      "modules_to_save": [_NAMES[module] for module in saved] or None,
  }
  (partial / SETTINGS).write_text(json.dumps(settings, indent=2))
  copy_licences(checkpoint, partial)
  copy_licences(init, partial)
  partial.rename(output)
  return job


def convert(folder: pathlib.Path, base: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
  """Writes a run that adapts `base` by PEFT's adapter; returns its job.

    OUTPUT/job.json               the base's shape and ids, with the adapter
    OUTPUT/checkpoints/0/params   float32
    OUTPUT/NOTICE and licences    if the adapter or the base has them

  The folder is written whole or not at all. Modules that PEFT keeps whole are `adapter.train`.
  Raises UserError for kinds of adapters that are not done here, and for tensors that do not fit the
  base, naming them all.
  """
  if output.exists():
    raise UserError(f"{output} is there already; name another --output or delete it.")
  theirs = read_job(base)
  config = read_model(base)
  if config.adapter is not None:
    raise UserError(f"{base} adapts another run already; name one that was trained whole.")
  adapter = _read_settings(folder / SETTINGS)
  config = dataclasses.replace(config, adapter=adapter, classifier=None)
  trained = abstract_trained(config)
  expected = dict(_named(config, trained, _saved_modules(trained)))
  tensors = SafetensorsFiles(folder / WEIGHTS)
  shapes = {name: tensor.shape for name, tensor in expected.items()}
  check_shapes(str(folder / WEIGHTS), shapes, tensors.shapes)
  params = gather(config.num_layers, expected, tensors)
  params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
  job = {
      "converted": {"sources": [folder.name]},
      "train": {"model": config_lib.to_dict(config), "init": str(base)},
      "tokens": theirs["tokens"],
      "base": describe_base(base),
  }

  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((partial / "checkpoints" / "0" / "params").absolute(), params)
  (partial / "job.json").write_text(json.dumps(job, indent=2))
  copy_licences(folder, partial)
  copy_licences(base, partial)
  partial.rename(output)
  return job


def _shapes(params: Params) -> dict[str, Shape]:
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {parameter_name(path): leaf.shape for path, leaf in leaves}


def _saved_modules(trained: Params) -> list[str]:
  """Our modules of which more is trained than an addition, in the order of the model."""
  modules = set()
  for name in _shapes(trained):
    module, _, kind = name.rpartition(".")
    if module == "rows":
      modules |= {"embed", "lm_head"}
    elif kind not in ADDED:
      modules.add(module)
  return [module for module in _NAMES if module in modules]


def _named(
    config: TransformerConfig, trained: Params, saved: list[str]
) -> Iterator[tuple[str, TorchTensor]]:
  """Every tensor of PEFT's file by name: the additions, then the modules that are saved whole."""
  for parameter, (layers, *shape) in _shapes(trained).items():
    module, _, kind = parameter.rpartition(".")
    if kind not in ADDED:
      continue
    ours = tuple(shape)
    theirs = f"{LAYER_MODULES[module.removeprefix('layers.')]}.{_ENDINGS[kind]}"
    for layer in range(layers):
      tensor = TorchTensor(parameter, layer, _torch_shape(kind, ours), ours)
      yield f"{_PREFIX}model.layers.{layer}.{theirs}", tensor
  for name, tensor in torch_tensors(dataclasses.replace(config, adapter=None)).items():
    if tensor.parameter.rpartition(".")[0] in saved:
      yield f"{_PREFIX}{name}", tensor


def _torch_shape(kind: str, ours: Shape) -> Shape:
  if kind == "lora_a":
    return ours[-1], math.prod(ours[:-1])
  if kind == "lora_b":
    return math.prod(ours[1:]), ours[0]
  return (math.prod(ours),)


def _read_settings(path: pathlib.Path) -> AdapterConfig:
  """The adapter of an adapter_config.json; UserError for what is not done here."""
  try:
    settings = json.loads(path.read_text())
    kind = settings.get("peft_type")
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(f"{path} is not there or damaged; name the folder of an adapter.") from error
  if kind != "LORA":
    raise UserError(f"{path} is of the kind {kind!r}; only LORA (with use_dora too) is done here.")
  others = {k: v for k, v in settings.items() if k not in (*_READ, *_WITHOUT_EFFECT)}
  # These ways to begin leave the base as it is; others change it, and the adapter is of that base.
  if settings.get("init_lora_weights", True) not in (True, False, "gaussian"):
    others["init_lora_weights"] = settings["init_lora_weights"]
  if settings.get("bias", "none") != "none":
    others["bias"] = settings["bias"]
  if refused := [f"{key}={value!r}" for key, value in others.items() if value]:
    raise UserError(
        f"{path} has {', '.join(refused)}, which is not done here; merge the adapter by PEFT and"
        " use from_torch."
    )
  targets, saved = settings.get("target_modules"), settings.get("modules_to_save") or []
  projections = {_NAMES[f"layers.{name}"]: name for name in PROJECTIONS}
  for key, names, known in (
      ("target_modules", targets, projections), ("modules_to_save", saved, _MODULES)
  ):  # fmt: skip
    if not isinstance(names, list) or not set(names) <= set(known):
      raise UserError(f"{path} has {key}={names!r}; it must be a list of {', '.join(known)}.")
  if both := sorted(set(targets) & set(saved)):
    raise UserError(f"{path} names {both[0]} in target_modules and in modules_to_save; drop one.")
  found = {
      "kind": "dora" if settings.get("use_dora") else "lora",
      "rank": settings.get("r", 8),
      "alpha": settings.get("lora_alpha", 8),
      "dropout": settings.get("lora_dropout", 0.0),
      "targets": [projections[name] for name in sorted(targets)],
      "train": [f"{_MODULES[name]}.*" for name in sorted(saved)],
  }
  adapter = config_lib.build(AdapterConfig, found, str(path))
  if settings.get("use_rslora"):  # It divides by the rank's root.
    adapter = dataclasses.replace(adapter, alpha=adapter.alpha * math.sqrt(adapter.rank))
  return adapter
