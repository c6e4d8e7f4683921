"""A model directory from a PhiForCausalLM and a VQModel of PyTorch's."""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import yaml

from chexmix_jax import config as config_lib
from chexmix_jax.conversion import phi, vqgan
from chexmix_jax.conversion.tensors import SafetensorsFiles, Shape
from chexmix_jax.conversion.torch_file import read_state_dict
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.bpe import BPETokenizer
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary

NOTICE = """\
The weights in this folder were converted by chexmix_jax from {sources}.

They stay under the licence of their source; the conversion adds no rights. The published CheXmix
weights are under the CheXmix Research License, and the image tokenizer they use is under the
Chameleon Research License. Both are non-commercial, and both want their notice passed on with the
weights. Read them before you use or pass on these files.

Research only, not for clinical use.
"""
_PIECE_BYTES = 1 << 26
_FILE_BYTES = 1 << 28
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


def convert(
    model: pathlib.Path,
    vqgan_file: pathlib.Path,
    output: pathlib.Path,
    vqgan_config: pathlib.Path | None = None,
    text_tokenizer: pathlib.Path | None = None,
    vocabulary_file: pathlib.Path | None = None,
    widen: bool = False,
) -> dict[str, Any]:
  """Writes `output` whole or not at all; returns what job.json holds.

    OUTPUT/job.json               shape and arithmetic (bfloat16 where the file is), vocabulary,
                                  fingerprints, names of the sources
    OUTPUT/checkpoints/0/params   in the precision of the file
    OUTPUT/image_tokenizer/
    OUTPUT/text_tokenizer/        or text_tokenizer.model, where one was given
    OUTPUT/NOTICE                 and the licence files that lay beside the model

  With `widen`, `model` is a language model that knows no images: its vocabulary gets the published
  layout, new rows starting from the mean of the text's. Raises UserError, before anything is
  written, for files that do not fit one another, with all tensors that are to blame.
  """
  if output.exists():
    raise UserError(f"{output} is there already; name another --output or delete it.")
  image_config, image_params, passed_over = _image_tokenizer(vqgan_file, vqgan_config)
  text = None if text_tokenizer is None else load_text_tokenizer(text_tokenizer)
  files = SafetensorsFiles(model)
  tensors: SafetensorsFiles | _Widened = files
  if widen:
    if vocabulary_file is not None:
      raise UserError("--widen gives the published layout; leave --vocabulary out.")
    if text is not None and not isinstance(text, BPETokenizer):
      raise UserError(f"--widen wants GPT-2's kind of text tokenizer; {text_tokenizer} is another.")
    if text is not None and text.added:
      raise UserError(f"{text_tokenizer} was extended; name its base, and extend that afterwards.")
    num_text = Vocabulary.published().num_text if text is None else text.vocab_size
    vocabulary = Vocabulary.bpe(num_text, image_config.num_codes)
    tensors = _Widened(files, vocabulary, str(model))
  config = phi.config_from_torch(tensors.shapes, _settings(model), str(model))
  if not widen:
    vocabulary = _vocabulary(vocabulary_file, config.vocab_size, image_config.num_codes)
  if text is not None and text.vocab_size != vocabulary.text_vocab_size:
    raise UserError(
        f"{text_tokenizer} has {text.vocab_size} ids, but the vocabulary has"
        f" {vocabulary.text_vocab_size} of text; name the text tokenizer that the model was trained"
        " with."
    )
  params = phi.params_from_torch(config, tensors, str(model))
  if params["lm_head"]["kernel"].dtype == ml_dtypes.bfloat16:
    config = dataclasses.replace(config, dtype="bfloat16")

  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  image = ImageTokenizer(image_config, image_params)
  image.save(partial / "image_tokenizer")
  if text is not None and text_tokenizer is not None and text.added:
    shutil.copytree(text_tokenizer, partial / "text_tokenizer")
  elif isinstance(text, BPETokenizer):
    text.save(partial / "text_tokenizer")
  elif text_tokenizer is not None:
    shutil.copyfile(text_tokenizer, partial / "text_tokenizer.model")
  _save(partial / "checkpoints" / "0" / "params", params)
  sources = [path.name for path in (model, vqgan_file)]
  job = {
      "converted": {"sources": sources, "widened": widen, "passed_over": passed_over},
      "train": {"model": config_lib.to_dict(config)},
      "tokens": {
          "vocabulary": vocabulary.to_dict(),
          "image_tokenizer": image.fingerprint,
          "text_tokenizer": None if text is None else text.fingerprint,
          "grid": list(image.grid),
      },
  }
  (partial / "job.json").write_text(json.dumps(job, indent=2))
  folder = model if model.is_dir() else model.parent
  notice = NOTICE.format(sources=" and ".join(sources))
  if (folder / "NOTICE").is_file():
    notice += f"\nNotice of the source:\n\n{(folder / 'NOTICE').read_text()}"
  (partial / "NOTICE").write_text(notice)
  copy_licences(folder, partial)
  partial.rename(output)
  return job


def _save(path: pathlib.Path, params: dict[str, Any]) -> None:
  """An Orbax checkpoint, written without a second copy of the parameters in memory."""
  numpy_handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
  registry = ocp.type_handlers.create_type_handler_registry(
      (np.ndarray, numpy_handler),
      (jax.Array, ocp.type_handlers.ArrayHandler()),  # It warns where this one is missing.
  )
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
  handler = ocp.PyTreeCheckpointHandler(
      type_handler_registry=registry, save_concurrent_gb=math.ceil(largest / 1e9)
  )
  with ocp.Checkpointer(handler) as checkpointer:
    # Copied and compressed in pieces; files are held in memory until they have their size.
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_PIECE_BYTES), params)
    save = ocp.args.PyTreeSave(params, pieces, ocdbt_target_data_file_size=_FILE_BYTES)
    checkpointer.save(path.absolute(), args=save)


def copy_licences(source: pathlib.Path, target: pathlib.Path) -> None:
  """Takes the licence and notice files along; a NOTICE that the target has already stays."""
  for pattern in _LICENCES:
    for path in source.glob(pattern):
      if path.is_file() and not (target / path.name).exists():
        shutil.copyfile(path, target / path.name)


def _image_tokenizer(path: pathlib.Path, settings_file: pathlib.Path | None):
  """Its shape, its parameters, and how many tensors were there for training only."""
  settings = None
  if settings_file is not None:
    try:
      settings = yaml.safe_load(settings_file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
      raise UserError(f"{settings_file} cannot be read as yaml; name another file.") from error
  tensors: Mapping[str, np.ndarray]
  is_safetensors = path.suffix == ".safetensors"
  tensors = dict(SafetensorsFiles(path)) if is_safetensors else read_state_dict(path)
  config = vqgan.config_from_torch(tensors, settings, str(path))
  params = vqgan.params_from_torch(config, tensors, str(path))
  return config, params, vqgan.count_training_only(tensors)


def _settings(model: pathlib.Path) -> dict[str, Any] | None:
  """config.json in the folder of the model, where there is one."""
  path = (model if model.is_dir() else model.parent) / "config.json"
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged; download it again.") from error


def _vocabulary(path: pathlib.Path | None, rows: int, num_codes: int) -> Vocabulary:
  """The published one, or that of an ids.json: dict(text, img, pad, boi, eoi, eot).

  There `text` and `img` count the rows of either kind, in this order, `pad` those that follow: mask
  and padding, and added text tokens, which `extra_offset` and `extra_text` tell of. Ids from boi on
  are no report text. An image tokenizer with fewer codes than `img` leaves the last of these rows
  unused.
  """
  if path is None:
    vocabulary = Vocabulary.bpe(Vocabulary.published().num_text, num_codes)
    room, hint = num_codes, "name its ids by --vocabulary"
  else:
    try:
      ids = json.loads(path.read_text())
      room, end = ids["img"], ids["text"] + ids["img"]
      vocabulary = Vocabulary(
          size=end + ids["pad"], num_text=min(ids["text"], ids["boi"], ids["eoi"]),
          image_offset=ids["text"], num_codes=min(room, num_codes), boi=ids["boi"],
          eoi=ids["eoi"], eot=ids["eot"], mask=end, pad=end + 1,
          extra_offset=ids.get("extra_offset", 0), extra_text=ids.get("extra_text", 0),
      )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(
          f"{path} is no JSON of the numbers text, img, pad, boi, eoi and eot; write one such as"
          ' {"text": 50368, "img": 8192, "pad": 2, "boi": 50295, "eoi": 50296, "eot": 50256}.'
      ) from error
    hint = f"mend {path}"
  if vocabulary.size != rows or num_codes > room:
    raise UserError(
        f"The model has {rows} rows and the image tokenizer {num_codes} codes, but the vocabulary"
        f" {vocabulary.size} rows and {room} codes; {hint}, or name the files of one model."
    )
  return vocabulary


class _Widened(Mapping[str, np.ndarray]):
  """A language model's tensors with rows for all of a vocabulary."""

  _TABLES = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")

  def __init__(self, tensors: SafetensorsFiles, vocabulary: Vocabulary, where: str):
    self._tensors, self._vocabulary = tensors, vocabulary
    self.shapes: dict[str, Shape] = dict(tensors.shapes)
    for name in self._TABLES:
      rows, *rest = self.shapes.get(name, (0,))
      if rows < vocabulary.num_text:
        raise UserError(
            f"{where} has {rows} rows in {name}, fewer than the {vocabulary.num_text} text ids;"
            " name the text tokenizer that it was trained with."
        )
      self.shapes[name] = (vocabulary.size, *rest)

  def __getitem__(self, name: str) -> np.ndarray:
    tensor = self._tensors[name]
    if name not in self._TABLES:
      return tensor
    text = tensor[: self._vocabulary.num_text]
    mean = text.astype(np.float64).mean(0).astype(text.dtype)
    new = np.broadcast_to(mean, (self._vocabulary.size - len(text), *text.shape[1:]))
    return np.concatenate([text, new])

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)
