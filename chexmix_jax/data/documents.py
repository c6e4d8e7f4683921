"""One study as one training document: image, then report."""

import dataclasses

import numpy as np

from chexmix_jax.tokenizers.vocabulary import Vocabulary

SPECIAL, IMAGE, TEXT = 0, 1, 2
"""Modalities of a token."""

# boi, eoi, eot
_NUM_SPECIAL = 3


@dataclasses.dataclass(frozen=True)
class Document:
  """`boi · image ids · eoi · eot · text ids`, L tokens, and what follows each of them.

  Attributes:
    tokens: int32 (L,).
    targets: int32 (L,), the token after each one; after the last it is the next document's boi, or
      the report's next token where the report was cut.
    modality: int8 (L,), of `tokens`: SPECIAL, IMAGE or TEXT.
    target_modality: int8 (L,), of `targets`.
  """

  tokens: np.ndarray
  targets: np.ndarray
  modality: np.ndarray
  target_modality: np.ndarray


def min_context(num_codes: int) -> int:
  """The shortest context that holds an image of `num_codes` codes and one token of a report."""
  return num_codes + _NUM_SPECIAL + 1


def make_document(
    codes: np.ndarray, text: np.ndarray, vocabulary: Vocabulary, max_length: int
) -> Document:
  """The document of image codes (n,) and text ids (m,), cut to `max_length` tokens at the end."""
  whole = np.concatenate([
      [vocabulary.boi],
      vocabulary.codes_to_ids(codes),
      [vocabulary.eoi, vocabulary.eot],
      text,
      [vocabulary.boi],
  ]).astype(np.int32)
  modality = np.zeros(len(whole), np.int8)
  modality[1 : 1 + len(codes)] = IMAGE
  modality[len(codes) + _NUM_SPECIAL : -1] = TEXT
  length = min(len(whole) - 1, max_length)
  return Document(
      tokens=whole[:length],
      targets=whole[1 : length + 1],
      modality=modality[:length],
      target_modality=modality[1 : length + 1],
  )
