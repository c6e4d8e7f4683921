"""Stage 2: random image and text inputs become the mask token; which targets carry loss."""

import dataclasses
from typing import Literal

import numpy as np

from chexmix_jax.data import documents
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class ModalityMaskConfig:
  """Masking of one modality; the defaults are stage 1, plain next-token prediction.

  A document's ratio is 0 with probability 1 - prob, else uniform in [low, high].

  Attributes:
    prob: probability that a document is masked at all.
    low: smallest ratio of a masked document.
    high: largest.
    loss_on: targets that carry loss: `all`, those whose own input is `masked`, or the `visible`.
    weight: weight of a target that carries loss.
  """

  prob: float = 0.0
  low: float = 0.0
  high: float = 0.0
  loss_on: Literal["all", "masked", "visible"] = "all"
  weight: float = 1.0

  def __post_init__(self):
    if not 0 <= self.prob <= 1:
      raise UserError(f"prob={self.prob} of a masking must lie between 0 and 1.")
    if not 0 <= self.low <= self.high <= 1:
      raise UserError(f"low={self.low} and high={self.high} of a masking must rise from 0 to 1.")
    if self.weight < 0:
      raise UserError(f"weight={self.weight} of a modality must not be negative.")


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
  """Masking of both modalities."""

  image: ModalityMaskConfig = dataclasses.field(default_factory=ModalityMaskConfig)
  text: ModalityMaskConfig = dataclasses.field(default_factory=ModalityMaskConfig)


def mask_codes(rng: np.random.Generator, codes: np.ndarray, ratio: float) -> np.ndarray:
  """A random mask, bool of the shape of `codes` (..., n), with round(ratio * n) set in each row."""
  ranks = rng.random(codes.shape).argsort(axis=-1).argsort(axis=-1)
  return ranks < int(ratio * codes.shape[-1] + 0.5)


def mask_document(
    document: documents.Document,
    config: MaskingConfig,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
  """inputs, targets (L,) int32 and weights (L,) float32 of a document; all chance is from `rng`.

  Special tokens are never masked. As targets they carry loss whatever `loss_on` says: with the
  image's weight where they end an image (eoi, and what follows it), with the text's where they end
  a text. No target of a prompt carries any; its inputs are masked as others are.
  """
  length = len(document.tokens)
  # One longer: the target of the last token is no input here, so it counts as visible.
  masked = np.zeros(length + 1, bool)
  weights = np.zeros(length, np.float32)
  for modality, setting in ((documents.IMAGE, config.image), (documents.TEXT, config.text)):
    where = np.flatnonzero(document.modality == modality)
    ratio = rng.uniform(setting.low, setting.high) if rng.random() < setting.prob else 0.0
    masked[where] = mask_codes(rng, where, ratio)
    chosen = {"all": True, "masked": masked[1:], "visible": ~masked[1:]}[setting.loss_on]
    is_special = document.target_modality == documents.SPECIAL
    special = is_special & (document.part == modality)
    weights[special | ((document.target_modality == modality) & chosen)] = setting.weight
  weights[document.is_prompt] = 0.0
  inputs = np.where(masked[:-1], np.int32(vocabulary.mask), document.tokens)
  return {"inputs": inputs, "targets": document.targets, "weights": weights}
