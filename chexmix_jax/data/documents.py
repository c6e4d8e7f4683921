"""Studies as training documents: images and texts in any order, one after the other."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

SPECIAL, IMAGE, TEXT = 0, 1, 2
"""Modalities of a token."""

IMAGE_PARTS = ("image", "frontal", "lateral")
"""Of a document: any picture of the study, and one of a view."""

TEXT_PARTS = (
    "report", "prior", "indication", "findings", "impression", "question", "answer", "labels",
)  # fmt: skip
"""The report, that of the patient's study before, the report's sections, a question on the pictures
and its answer, and what the labels say in words. Token records hold the ids of each."""

PARTS = IMAGE_PARTS + TEXT_PARTS

# boi and eoi around an image, eot before a text.
IMAGE_SPECIALS, TEXT_SPECIALS = 2, 1


@dataclasses.dataclass(frozen=True)
class Form:
  """What a document is made of.

  Attributes:
    parts: some of PARTS, in their order.
    weight: how often it is chosen, relative to the other forms that a study can have.
    prompts: those of the parts that are seen but carry no loss.
  """

  parts: tuple[str, ...]
  weight: float = 1.0
  prompts: tuple[str, ...] = ()

  @property
  def num_images(self) -> int:
    return sum(part in IMAGE_PARTS for part in self.parts)

  @property
  def texts(self) -> tuple[str, ...]:
    return tuple(part for part in self.parts if part in TEXT_PARTS)

  def can_be(self, index: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of which studies there is such a document, bool (N,), by the index of token records."""
    names = ["pictures" if part == "image" else part for part in self.parts]
    return np.logical_and.reduce([index[name] > 0 for name in names])

  def length(self, num_codes: int, lengths: Mapping[str, np.ndarray]) -> np.ndarray | int:
    """Tokens of documents of this form, by the lengths of their texts; one number without any."""
    images = self.num_images * (num_codes + IMAGE_SPECIALS)
    return images + sum(lengths[part] + TEXT_SPECIALS for part in self.texts)

  def min_context(self, num_codes: int) -> int:
    """The shortest context that holds its images and a token of each text."""
    return self.num_images * (num_codes + IMAGE_SPECIALS) + 2 * len(self.texts)


def parse_forms(text: str, where: str = "data.documents") -> tuple[Form, ...]:
  """The forms of a text such as `image report:3, image (indication) report, report`.

  A number after a colon is the weight, 1 where there is none. A part in round brackets is a prompt.
  Raises UserError for anything else, which begins with `where`.
  """
  forms = []
  for item in text.split(","):
    name, _, weight = item.partition(":")
    words = name.split()
    parts = tuple(re.sub(r"^\((.*)\)$", r"\1", word) for word in words)
    prompts = tuple(part for part, word in zip(parts, words, strict=True) if part != word)
    try:
      number = float(weight) if weight.strip() else 1.0
    except ValueError:
      number = -1.0
    unknown = [part for part in parts if part not in PARTS]
    if not parts or unknown or number <= 0 or len(set(parts)) < len(parts):
      raise UserError(
          f"{where}: {item.strip()!r} is no form of a document; use some of {', '.join(PARTS)},"
          " each once, prompts in round brackets, with a positive weight after a colon if you like."
      )
    if len(prompts) == len(parts):
      raise UserError(
          f"{where}: all of {item.strip()!r} stands in brackets and carries no loss; take them off"
          " what is to be learnt."
      )
    forms.append(Form(parts, number, prompts))
  return tuple(forms)


def parse_written_form(text: str, where: str) -> Form:
  """The one form of a text such as `image (question) answer`, whose last part is to be written.

  Everything before is its prompt, in brackets or not. Raises UserError, which begins with `where`,
  for several forms and for one that does not end with a text.
  """
  forms = parse_forms(text, where)
  if len(forms) > 1 or forms[0].parts[-1] not in TEXT_PARTS:
    raise UserError(
        f"{where}: {text!r} must be one form whose last part is a text, such as image report."
    )
  return forms[0]


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
    is_prompt: bool (L,), whether the part that each token belongs to is a prompt. As a part begins
      with a special token, that holds for the token's target too, where a special target belongs to
      the part that it ends.
  """

  tokens: np.ndarray
  targets: np.ndarray
  modality: np.ndarray
  target_modality: np.ndarray
  part: np.ndarray
  is_prompt: np.ndarray


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
    parts: Sequence[np.ndarray | Text],
    vocabulary: Vocabulary,
    max_length: int,
    are_prompts: Sequence[bool] = (),
) -> Document:
  """The document of image codes (n,) and texts, of `max_length` tokens at most.

  `are_prompts` says of each part whether it is a prompt; by default none is.

  Texts that are too long are cut after a sentence, or within one where the first does not fit. The
  last text may use what the others leave, and each of the others half of what there is.
  """
  texts = [part for part in parts if isinstance(part, Text)]
  room = max_length - sum(
      TEXT_SPECIALS if isinstance(part, Text) else len(part) + IMAGE_SPECIALS for part in parts
  )
  kept = _shares([len(text.ids) for text in texts], room)
  ids: list[Any] = []
  modality, owner, is_prompt = [], [], []
  following = vocabulary.boi
  for part, of_prompt in zip(parts, are_prompts or [False] * len(parts), strict=True):
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
    is_prompt += [[of_prompt] * len(owner[-1])]
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
      is_prompt=np.concatenate(is_prompt).astype(bool),
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
