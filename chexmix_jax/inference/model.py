"""A trained model as the evaluations, predictions and Python programs use it."""

import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special
from PIL import Image

from chexmix_jax import config as config_lib
from chexmix_jax.data import images as images_lib
from chexmix_jax.data.documents import IMAGE_PARTS, parse_written_form
from chexmix_jax.data.masking import mask_codes
from chexmix_jax.errors import UserError
from chexmix_jax.inference.classify import log_odds
from chexmix_jax.inference.embeddings import embed_images
from chexmix_jax.inference.generate import GenerateConfig
from chexmix_jax.inference.inpaint import METHODS, fill_codes
from chexmix_jax.inference.inputs import Picture, as_pixels
from chexmix_jax.inference.reports import (
  generate_ids,
  make_prompt,
  prompt_texts,
  read_report,
  report_options,
)
from chexmix_jax.inference.surprise import Surprise, image_surprise
from chexmix_jax.models.transformer import (
  Params,
  Transformer,
  TransformerConfig,
  abstract_params,
)
from chexmix_jax.models.unstack import unstack_layers
from chexmix_jax.parallel.batches import map_rows
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.parallel.sharding import sharded_shapes
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer
from chexmix_jax.tokenizers.text import TextTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.base import load_adapted, read_model
from chexmix_jax.training.checkpoint import load_params, read_job

_IMAGES_AT_A_TIME = 32  # Read before they are encoded.


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """Parameters of one checkpoint with what is needed to use them.

  Attributes:
    params: with the layers apart, as `unstack_layers` leaves them.
    job: the run's job.json: `train` (its TrainConfig) and `tokens` (the card of its records).
    step: of the checkpoint.
  """

  config: TransformerConfig
  vocabulary: Vocabulary
  params: Params
  job: dict[str, Any]
  step: int


class Model:
  """A trained model with its tokenizers; made by `chexmix_jax.load`.

  `images` is a list of paths, Pillow's pictures and arrays, or one array, (N, H, W) or (N, H, W,
  colours). A file is read as the published reader reads it, and so are integers; floats are pixels
  in [-1, 1] at the image tokenizer's size. N may be anything from 1: batches are made inside, and
  what comes back are numpy arrays and strings in the order of the pictures. Raises UserError for a
  picture that cannot be read.

  Attributes:
    config: shape of the decoder.
    vocabulary: its ids.
    params: its parameters, with the layers apart.
    step: of the checkpoint.
    batch_size: rows of a pass.
  """

  def __init__(
      self,
      loaded: LoadedModel,
      image_tokenizer: ImageTokenizer | None = None,
      text_tokenizer: TextTokenizer | None = None,
      batch_size: int = 8,
  ):
    self.config = loaded.config
    self.vocabulary = loaded.vocabulary
    self.params = loaded.params
    self.step = loaded.step
    self.batch_size = batch_size
    self._image_tokenizer = image_tokenizer
    self._text_tokenizer = text_tokenizer
    config_lib.check_at_least_one(self, ("batch_size",), "a model")

  @property
  def image_tokenizer(self) -> ImageTokenizer:
    """encode(pixels) gives codes (N, h, w), decode(codes) pixels; UserError without one."""
    if self._image_tokenizer is None:
      raise UserError("This model has no image tokenizer; name its folder by image_tokenizer.")
    return self._image_tokenizer

  @property
  def text_tokenizer(self) -> TextTokenizer:
    """encode(text) gives ids, decode(ids) a text; UserError without one."""
    if self._text_tokenizer is None:
      raise UserError(
          "This model has no text tokenizer; name its file or folder by text_tokenizer."
      )
    return self._text_tokenizer

  def logits(self, ids: np.ndarray) -> np.ndarray:
    """float32 (N, T, V), of what follows each of the token ids (N, T)."""
    function = jax.tree_util.Partial(_logits(self.config), self.params)
    return map_rows(function, self._checked(ids), self._batch_size(ids))

  def hidden_states(self, ids: np.ndarray) -> np.ndarray:
    """float32 (L+1, N, T, D) of token ids (N, T).

    Token embeddings, outputs of all layers but the last, and the final norm of the last's.
    """
    function = jax.tree_util.Partial(_hidden_states(self.config), self.params)
    hidden = map_rows(function, self._checked(ids), self._batch_size(ids))
    return np.moveaxis(hidden, 1, 0)

  def generate(
      self, prompts: Sequence[np.ndarray] | np.ndarray, max_new: int, min_new: int = 0
  ) -> list[np.ndarray]:
    """The most likely new ids after each prompt, int32 arrays; prompts may differ in length.

    Ids of all kinds may come. A row ends with the vocabulary's report_end, which is kept and which
    is forbidden for the first `min_new` ids, or after `max_new` ids.
    """
    options = GenerateConfig(
        max_new=max_new,
        min_new=min_new,
        stop_ids=(self.vocabulary.report_end,),
        text_only=False,
    )
    rows = [self._checked(np.asarray(prompt)[None])[0] for prompt in _at_least_one(prompts)]
    return generate_ids(
        self.config, self.vocabulary, self.params, rows, options, self._batch_size(rows)
    )

  def generate_reports(
      self,
      images: Sequence[Picture] | np.ndarray,
      mask_ratio: float = 0.0,
      seed: int = 0,
      documents: str = "image report",
      prompts: Mapping[str, Sequence[str]] | None = None,
  ) -> list[str]:
    """The most likely report of each picture, or another text that the model was trained to write.

    `documents` is one form of data.documents with one picture: its last part is written, after the
    others. Its other texts are `prompts`, by name a text for each picture, as in
    generate_reports(images, documents="image (question) answer", prompts={"question": [...]}); one
    that is empty is left out, as in a form without it.

    With a `mask_ratio` that share of a picture's codes is the mask token in the prompt; which of
    them depends on `seed` and on the picture alone.
    """
    form = parse_written_form(documents, "documents")
    if not 0 <= mask_ratio <= 1:
      raise UserError(f"mask_ratio={mask_ratio} must lie between 0 and 1.")
    tokenizer, codes = self.text_tokenizer, self._encode(images)
    hidden = np.stack([
        mask_codes(np.random.default_rng([seed, zlib.crc32(row.tobytes())]), row, mask_ratio)
        for row in codes
    ])
    ids = np.where(hidden, self.vocabulary.mask, self.vocabulary.codes_to_ids(codes))
    texts = prompt_texts(form, prompts or {}, len(ids))

    def encode(text: str) -> np.ndarray:
      return self.vocabulary.text_to_ids(np.array(tokenizer.encode(text)))

    given = [
        make_prompt(self.vocabulary, {
            part: row if part in IMAGE_PARTS else encode(texts[part][number])
            for part in form.parts[:-1]
            if part in IMAGE_PARTS or texts[part][number]
        })
        for number, row in enumerate(ids)
    ]
    new = generate_ids(
        self.config, self.vocabulary, self.params, given,
        report_options(self.vocabulary, form.parts), self._batch_size(ids),
    )  # fmt: skip
    return [read_report(self.vocabulary, tokenizer, row) for row in new]

  def embed(
      self, images: Sequence[Picture] | np.ndarray, layers: Sequence[int] | None = None
  ) -> np.ndarray:
    """float32 (N, number of layers, D): the mean hidden state over a picture's codes, by layer.

    Layers are those of `hidden_states`, from 0; by default all L+1 of them.
    """
    known = range(self.config.num_layers + 1)
    layers = known if layers is None else layers
    for layer in layers:
      if layer not in known:
        raise UserError(f"layers holds {layer}; use some of 0 … {known[-1]}.")
    ids = self.vocabulary.codes_to_ids(self._encode(images))
    embedded = embed_images(
        self.config, self.vocabulary, self.params, ids, self._batch_size(ids)
    )
    return embedded[:, list(layers)]

  def classify(self, images: Sequence[Picture] | np.ndarray) -> np.ndarray:
    """float32 (N, F): the probability of each of `config.classifier.findings`, which was trained.

    UserError where the model has no classifier.
    """
    if self.config.classifier is None:
      raise UserError("This model has no classifier; train one with model.classifier.")
    ids = self.vocabulary.codes_to_ids(self._encode(images))
    odds = log_odds(self.config, self.vocabulary, self.params, ids, self._batch_size(ids))
    return scipy.special.expit(odds)

  def inpaint(
      self,
      images: Sequence[Picture] | np.ndarray,
      masks: np.ndarray,
      method: str = "sequential",
  ) -> np.ndarray:
    """uint8 (N, H, W, C): the pictures drawn anew, hidden cells filled in by the model.

    `masks` are bool (N, h, w), or (h, w) for all of them, and set where a cell of the image
    tokenizer's grid is hidden; `method` is one of chexmix_jax.inference.inpaint.METHODS, which
    describes them. "sequential" needs no training with masks.
    """
    if method not in METHODS:
      raise UserError(f"method={method!r} is no way to inpaint; use one of {', '.join(METHODS)}.")
    codes, masks = self._encode(images), np.asarray(masks)
    grid = self.image_tokenizer.grid
    if masks.dtype != bool or masks.shape not in (grid, (len(codes), *grid)):
      raise UserError(
          f"masks of shape {masks.shape} and type {masks.dtype} must be bool, {grid} or"
          f" {(len(codes), *grid)}."
      )
    hidden = np.broadcast_to(masks, (len(codes), *grid)).reshape(codes.shape)
    filled = fill_codes(
        self.config, self.vocabulary, self.params, codes, hidden, method, self._batch_size(codes)
    )
    return self._draw(filled["codes"])

  def reconstruct(self, images: Sequence[Picture] | np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C): what the image tokenizer draws of the pictures' own codes."""
    return self._draw(self._encode(images))

  def token_surprise(
      self, images: Sequence[Picture] | np.ndarray, radius: int = 1
  ) -> Surprise:
    """-log p in nats of each code of the pictures: `causal` and `masked`, float32 (N, h, w) each.

    `causal` is given all codes before it, `masked` the same without those up to `radius` rows and
    columns away, see chexmix_jax.inference.surprise.
    """
    codes = self._encode(images).reshape(-1, *self.image_tokenizer.grid)
    return image_surprise(
        self.config, self.vocabulary, self.params, codes, radius, self._batch_size(codes)
    )

  def pixels(self, picture: Picture) -> np.ndarray:
    """float32 (H, W, C) in [-1, 1] of one picture, as the image tokenizer is given it."""
    config = self.image_tokenizer.config
    return as_pixels(picture, config.resolution, config.in_channels)

  def _encode(self, images: Sequence[Picture] | np.ndarray) -> np.ndarray:
    """Codes int32 (N, h·w) of pictures."""
    if isinstance(images, str | os.PathLike | Image.Image):
      raise UserError("images must be a list of pictures; put the one picture into a list.")
    images = _at_least_one(images)
    codes = []
    for start in range(0, len(images), _IMAGES_AT_A_TIME):
      pixels = [self.pixels(image) for image in images[start : start + _IMAGES_AT_A_TIME]]
      codes.append(self.image_tokenizer.encode(np.stack(pixels)))
    return np.concatenate(codes).reshape(len(images), -1)

  def _draw(self, codes: np.ndarray) -> np.ndarray:
    pixels = self.image_tokenizer.decode(codes.reshape(-1, *self.image_tokenizer.grid))
    return images_lib.to_uint8(pixels)

  def _batch_size(self, rows: Any) -> int:
    """Of a pass over these rows: no more than the next power of two where they are few."""
    return min(self.batch_size, 1 << (len(rows) - 1).bit_length())

  def _checked(self, ids: np.ndarray) -> np.ndarray:
    """The ids (N, T) as int32; UserError for ids that are none."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
      raise UserError(f"ids of shape {ids.shape} and type {ids.dtype} must be integers (N, T).")
    if ids.min() < 0 or ids.max() >= self.vocabulary.size:
      raise UserError(
          f"ids from {ids.min()} to {ids.max()} must lie in 0 … {self.vocabulary.size - 1}."
      )
    return ids.astype(np.int32)


def load(
    directory: str | os.PathLike[str],
    step: int | None = None,
    image_tokenizer: str | os.PathLike[str] | None = None,
    text_tokenizer: str | os.PathLike[str] | None = None,
    batch_size: int = 8,
) -> Model:
  """The model in a run directory of `train`, or in what `convert` wrote.

  `step` is that of the checkpoint, by default the best of a run with validations, and else the
  newest. The tokenizers are those of `convert` in the directory, or those at the paths that are
  given; `train` leaves none there. Without a text tokenizer everything but text works. `batch_size`
  is that of every pass.

  Raises UserError where the directory holds no such checkpoint, and for tokenizers other than those
  it was trained with; an image tokenizer may be one that was adapted from its own, with its codes.
  """
  folder = pathlib.Path(directory)
  loaded = load_model(folder, step)
  image_path = _tokenizer_path(folder, image_tokenizer, ("image_tokenizer",))
  text_path = _tokenizer_path(folder, text_tokenizer, ("text_tokenizer", "text_tokenizer.model"))
  image = None if image_path is None else ImageTokenizer.load(image_path)
  text = None if text_path is None else load_text_tokenizer(text_path)
  for name, path, found in (
      ("image_tokenizer", image_path, image and image.codes_fingerprint),
      ("text_tokenizer", text_path, text and text.fingerprint),
  ):
    expected = loaded.job["tokens"].get(name)
    if found is not None and expected is not None and found != expected:
      kind = name.replace("_", " ")
      raise UserError(
          f"{path} is another {kind} than the one that {folder} was trained with; name that one."
      )
  return Model(loaded, image, text, batch_size)


def load_model(run_dir: pathlib.Path, step: int | None = None) -> LoadedModel:
  """The checkpoint of a run, sharded over all devices' data axis.

  `step` is as of load_params. What a run with an adapter trained is merged into its base. Raises
  UserError where the folder is not a run or holds no such checkpoint, or its base is gone.
  """
  job = read_job(run_dir)
  config = read_model(run_dir)
  mesh = make_mesh()
  if config.adapter is not None:
    params, step = load_adapted(run_dir, config, step, mesh)
    config = dataclasses.replace(config, adapter=None)
    params = unstack_layers(params)
  else:
    abstract = sharded_shapes(mesh, abstract_params(config))
    params, step = load_params(run_dir, abstract, step, as_saved=True, layers_apart=True)
  return LoadedModel(config, Vocabulary(**job["tokens"]["vocabulary"]), params, job, step)


def _tokenizer_path(
    folder: pathlib.Path, given: str | os.PathLike[str] | None, names: Sequence[str]
) -> pathlib.Path | None:
  if given is not None:
    return pathlib.Path(given)
  return next((folder / name for name in names if (folder / name).exists()), None)


def _at_least_one(items: Any) -> Any:
  if len(items) < 1:
    raise UserError("There is nothing in the list; give at least one item.")
  return items


@functools.cache
def _logits(config: TransformerConfig) -> Callable[[Params, jax.Array], jax.Array]:
  return lambda params, ids_BT: Transformer(config, params)(ids_BT)


@functools.cache
def _hidden_states(config: TransformerConfig) -> Callable[[Params, jax.Array], jax.Array]:
  def function(params, ids_BT):
    hidden_LBTD = Transformer(config, params).hidden_states(ids_BT)
    return hidden_LBTD.swapaxes(0, 1).astype("float32")

  return function
