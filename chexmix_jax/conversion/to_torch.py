"""A folder that PyTorch loads, from a training run or a converted model."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import yaml

from chexmix_jax.conversion import phi, vqgan
from chexmix_jax.conversion.classifier import write_classifier
from chexmix_jax.conversion.from_torch import copy_licences
from chexmix_jax.conversion.tensors import write_file, write_safetensors
from chexmix_jax.conversion.torch_file import write_state_dict
from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import abstract_params
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.tokenizers.bpe import END_OF_TEXT, BPETokenizer
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer
from chexmix_jax.tokenizers.vocabulary import SPECIAL_TOKENS, WHITE_SPACE_RUNS, Vocabulary
from chexmix_jax.training.base import load_adapted, read_model
from chexmix_jax.training.checkpoint import load_params, read_job

_PUBLISHED_CONTEXT = 2048
_MIN_NEW, _MAX_NEW = 5, 200  # Of a report, as the published package generates it.


def export(
    checkpoint: pathlib.Path,
    output: pathlib.Path,
    image_tokenizer: pathlib.Path | None = None,
    text_tokenizer: pathlib.Path | None = None,
    step: int | None = None,
) -> None:
  """Writes `output` whole or not at all, in the precision of the checkpoint.

    OUTPUT/config.json, generation_config.json, model*.safetensors   of a PhiForCausalLM
    OUTPUT/classifier.safetensors, classifier.json                   see write_classifier
    OUTPUT/vqgan.safetensors, vqgan.ckpt, vq_gan.yaml                of a VQModel, if there is one
    OUTPUT/ids.json                                                  what `from_torch` asks for
    OUTPUT/vocab.json, merges.txt, tokenizer_config.json             of a CodeGenTokenizer, or
    OUTPUT/tokenizer.model                                           if there is one
    OUTPUT/text_tokenizer/                                           instead, if it was extended:
                             torch's tokenizers can have no ids behind the image codes
    OUTPUT/NOTICE and licences                                       if the checkpoint has them

  The tokenizers are those in the folder of the checkpoint, unless others are named. Raises
  UserError where an input is missing or does not fit.
  """
  if output.exists():
    raise UserError(f"{output} is there already; name another --output or delete it.")
  job = read_job(checkpoint)
  config = read_model(checkpoint)
  vocabulary = Vocabulary(**job["tokens"]["vocabulary"])
  image = _beside(checkpoint, image_tokenizer, "image_tokenizer")
  text = _beside(checkpoint, text_tokenizer, "text_tokenizer", "text_tokenizer.model")
  network = None if image is None else ImageTokenizer.load(image)
  tokenizer = None if text is None else load_text_tokenizer(text)
  for kind, path, found in (
      ("image", image, network and network.codes_fingerprint),
      ("text", text, tokenizer and tokenizer.fingerprint),
  ):
    if found is not None and found != job["tokens"][f"{kind}_tokenizer"]:
      raise UserError(
          f"{path} is another {kind} tokenizer than that of {checkpoint}; name its own."
      )
  image_tensors = None if network is None else vqgan.params_to_torch(network.config, network.params)
  if config.adapter is not None:
    params, _ = load_adapted(checkpoint, config, step, make_mesh())
    config = dataclasses.replace(config, adapter=None)
  else:
    params, _ = load_params(checkpoint, abstract_params(config), step, as_saved=True)
  dtype = np.dtype(jax.tree.leaves(params)[0].dtype)

  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  context = job["train"].get("data", {}).get("context", _PUBLISHED_CONTEXT)
  _write_json(partial / "config.json", {
      **phi.config_to_torch(config, vocabulary.eot, context), "dtype": dtype.name,
  })  # fmt: skip
  _write_json(partial / "generation_config.json", {
      "bos_token_id": vocabulary.eot, "eos_token_id": vocabulary.report_end,
      "pad_token_id": vocabulary.pad, "do_sample": False,
      "min_new_tokens": _MIN_NEW, "max_new_tokens": _MAX_NEW,
  })  # fmt: skip
  _write_json(partial / "ids.json", _ids(vocabulary))
  write_safetensors(partial, phi.params_to_torch(config, params), dtype)
  write_classifier(partial, config, params)
  if network is not None and image_tensors is not None:
    write_file(partial / "vqgan.safetensors", image_tensors, np.dtype(np.float32))
    write_state_dict(partial / "vqgan.ckpt", {name: read() for name, _, read in image_tensors})
    settings = yaml.safe_dump(vqgan.config_to_torch(network.config), sort_keys=False)
    (partial / "vq_gan.yaml").write_text(settings)
  if text is not None and tokenizer is not None and tokenizer.added:
    shutil.copytree(text, partial / "text_tokenizer")
  elif isinstance(tokenizer, BPETokenizer):
    tokenizer.save(partial)
    _write_json(partial / "tokenizer_config.json", _codegen_settings(tokenizer.vocab_size, context))
  elif text is not None:
    shutil.copyfile(text, partial / "tokenizer.model")
  copy_licences(checkpoint, partial)
  partial.rename(output)


def _beside(
    checkpoint: pathlib.Path, named: pathlib.Path | None, *usual: str
) -> pathlib.Path | None:
  """The path that was named, or that in the folder of the checkpoint, if any."""
  if named is not None:
    return named
  return next((checkpoint / name for name in usual if (checkpoint / name).exists()), None)


def _codegen_settings(num_text: int, context: int) -> dict[str, Any]:
  """tokenizer_config.json of a CodeGenTokenizer with the tokens added behind GPT-2's."""
  first = num_text - len(WHITE_SPACE_RUNS)
  added = {first - 1: END_OF_TEXT} | dict(enumerate((*WHITE_SPACE_RUNS, *SPECIAL_TOKENS), first))
  return {
      "tokenizer_class": "CodeGenTokenizer",
      "add_prefix_space": False,
      "clean_up_tokenization_spaces": False,
      "model_max_length": context,
      **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
      "added_tokens_decoder": {
          str(number): {
              "content": token, "lstrip": False, "normalized": False, "rstrip": False,
              "single_word": False, "special": token not in WHITE_SPACE_RUNS,
          }
          for number, token in added.items()
      },
  }  # fmt: skip


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
  extra = {"extra_offset": vocabulary.extra_offset, "extra_text": vocabulary.extra_text}
  return {
      "text": vocabulary.image_offset,
      "img": vocabulary.mask - vocabulary.image_offset,
      "pad": vocabulary.size - vocabulary.mask,
      "boi": vocabulary.boi,
      "eoi": vocabulary.eoi,
      "eot": vocabulary.eot,
      **(extra if vocabulary.extra_text else {}),
  }


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2))
