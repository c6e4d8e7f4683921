"""Studies as training documents: images and texts in any order, one after the other."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

SPECIAL, IMAGE, TEXT = 0, 1, 2
"""Modalities of a token."""

PARTS = ("image", "frontal", "lateral", "prior", "report")
"""Of a document: any picture of the study, one of a view, the patient's report before, its own."""

IMAGE_PARTS, TEXT_PARTS = PARTS[:3], PARTS[3:]

# boi and eoi around an image, eot before a text.
IMAGE_SPECIALS, TEXT_SPECIALS = 2, 1


@dataclasses.dataclass(frozen=True)
class Form:
  """What a document is made of.

  Attributes:
    parts: some of PARTS, in their order.
    weight: how often it is chosen, relative to the other forms that a study can have.
  """

  parts: tuple[str, ...]
  weight: float = 1.0

  @property
  def num_images(self) -> int:
    return sum(part in IMAGE_PARTS for part in self.parts)

  @property
  def texts(self) -> tuple[str, ...]:
    return tuple(part for part in self.parts if part in TEXT_PARTS)

  def length(self, num_codes: int, prior: np.ndarray, report: np.ndarray) -> np.ndarray:
    """Tokens of documents of this form, by the lengths of their texts."""
    lengths = {"prior": prior, "report": report}
    images = self.num_images * (num_codes + IMAGE_SPECIALS)
    return images + sum((lengths[part] + TEXT_SPECIALS for part in self.texts), 0 * report)

  def min_context(self, num_codes: int) -> int:
    """The shortest context that holds its images and a token of each text."""
    return self.num_images * (num_codes + IMAGE_SPECIALS) + 2 * len(self.texts)


def parse_forms(text: str) -> tuple[Form, ...]:
  """The forms of a text such as `image report:3, frontal lateral report, report`.

  A number after a colon is the weight, 1 where there is none. Raises UserError for anything else.
  """
  forms = []
  for item in text.split(","):
    name, _, weight = item.partition(":")
    parts = tuple(name.split())
    try:
      number = float(weight) if weight.strip() else 1.0
    except ValueError:
      number = -1.0
    unknown = [part for part in parts if part not in PARTS]
    if not parts or unknown or number <= 0 or len(set(parts)) < len(parts):
      raise UserError(
          f"data.documents: {item.strip()!r} is no form of a document; use some of"
          f" {', '.join(PARTS)}, each once, with a positive weight after a colon if you like."
      )
    forms.append(Form(parts, number))
  return tuple(forms)


@dataclasses.dataclass(frozen=True)
class Document:
  """L tokens, and what follows each of them.

  An image is `boi · ids · eoi`, a text is `eot · ids`; `boi` follows the last part, as the next
  document's would: image · report is the published `boi · image ids · eoi · eot · text ids`.

  Attributes:
    tokens: int32 (L,).
    targets: int32 (L,), the token after each one; after a last text that was cut, its next token.
    modality: int8 (L,), of `tokens`: SPECIAL, IMAGE or TEXT.
    target_modality: int8 (L,), of `targets`.
    part: int8 (L,), IMAGE or TEXT: to which of them each token belongs, special ones included.
  """

  tokens: np.ndarray
  targets: np.ndarray
  modality: np.ndarray
  target_modality: np.ndarray
  part: np.ndarray


@dataclasses.dataclass(frozen=True)
class Text:
  """Ids of a text.

  Attributes:
    ids: (m,).
    sentence_ends: rising lengths at which it can be cut between two sentences.
  """

  ids: np.ndarray
  sentence_ends: np.ndarray


def make_document(
    parts: Sequence[np.ndarray | Text], vocabulary: Vocabulary, max_length: int
) -> Document:
  """The document of image codes (n,) and texts, of `max_length` tokens at most.

  Texts that are too long are cut after a sentence, or within one where the first does not fit. The
  last text may use what the others leave, and each of the others half of what there is.
  """
  texts = [part for part in parts if isinstance(part, Text)]
  room = max_length - sum(
      TEXT_SPECIALS if isinstance(part, Text) else len(part) + IMAGE_SPECIALS for part in parts
  )
  kept = _shares([len(text.ids) for text in texts], room)
  ids: list[Any] = []
  modality, owner = [], []
  following = vocabulary.boi
  for part in parts:
    if isinstance(part, Text):
      length = _cut(part, kept.pop(0))
      ids += [[vocabulary.eot], part.ids[:length]]
      modality += [[SPECIAL], [TEXT] * length]
      owner += [[TEXT] * (length + TEXT_SPECIALS)]
      is_cut = length < len(part.ids)
      following = int(part.ids[length]) if is_cut else vocabulary.boi
    else:
      ids += [[vocabulary.boi], vocabulary.codes_to_ids(part), [vocabulary.eoi]]
      modality += [[SPECIAL], [IMAGE] * len(part), [SPECIAL]]
      owner += [[IMAGE] * (len(part) + IMAGE_SPECIALS)]
      following = vocabulary.boi
  ids.append([following])
  modality.append([SPECIAL if following == vocabulary.boi else TEXT])
  all_ids = np.concatenate(ids).astype(np.int32)
  all_modality = np.concatenate(modality).astype(np.int8)
  return Document(
      tokens=all_ids[:-1],
      targets=all_ids[1:],
      modality=all_modality[:-1],
      target_modality=all_modality[1:],
      part=np.concatenate(owner).astype(np.int8),
  )


def _shares(lengths: list[int], room: int) -> list[int]:
  """How many tokens of each text fit."""
  shares = []
  for i, length in enumerate(lengths):
    rest = sum(lengths[i + 1 :])
    share = min(length, max(room // 2 if rest else room, room - rest))
    shares.append(share)
    room -= share
  return shares


def _cut(text: Text, length: int) -> int:
  if length >= len(text.ids):
    return len(text.ids)
  fitting = text.sentence_ends[text.sentence_ends <= length]
  return int(fitting[-1]) if len(fitting) else length
