"""What every evaluation shares: its inputs and its result.

An evaluation is a class of one file: `Evaluation(context, config).run(params)` gives a Result. It
is built once for a set of inputs, and run for each checkpoint.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from chexmix_jax.data.masking import mask_codes
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.models.transformer import Params, TransformerConfig
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.text import TextTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Context:
  """What the evaluations read, whatever the checkpoint.

  Attributes:
    model: shape of the checkpoints.
    vocabulary: of the checkpoints and of `tokens`.
    studies: folder of study records.
    tokens: folder of their token records, made with the two tokenizers.
    split: the split that is scored.
    seed: of masks and of baselines that are drawn by lot.
  """

  model: TransformerConfig
  vocabulary: Vocabulary
  studies: pathlib.Path
  tokens: pathlib.Path
  image_tokenizer: ImageTokenizer
  text_tokenizer: TextTokenizer
  split: str = "test"
  seed: int = 0

  def hidden_ids(
      self, codes_PT: np.ndarray, ratio: float, keys: Iterable[Sequence[int]]
  ) -> np.ndarray:
    """Token ids (P, T) of pictures, a share of the codes of each masked.

    The places depend on the seed and the picture's `keys`; more is hidden at larger ratios.
    """
    hidden_PT = [
        mask_codes(np.random.default_rng([self.seed, *key]), codes, ratio)
        for key, codes in zip(keys, codes_PT, strict=True)
    ]
    return np.where(hidden_PT, self.vocabulary.mask, self.vocabulary.codes_to_ids(codes_PT))


@dataclasses.dataclass(frozen=True)
class Result:
  """What an evaluation found.

  Attributes:
    values: figure name -> number, of what is not a figure of the studies: counts, chance.
    artefacts: name -> array (numbers, pictures or str), for figures and tables of examples.
    figures: figure name -> how it depends on the studies; baselines stand beside the figures, see
      each evaluation.
    patient_ids: of the studies of `figures`.
    options: what a signature has to name besides, such as the policy for uncertain labels.
  """

  values: dict[str, float]
  artefacts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  figures: dict[str, Figure] = dataclasses.field(default_factory=dict)
  patient_ids: Sequence[str] = ()
  options: dict[str, str] = dataclasses.field(default_factory=dict)


class Evaluation(Protocol):
  """One evaluation over fixed inputs."""

  def run(self, params: Params) -> Result:
    """Scores the parameters of one checkpoint."""
