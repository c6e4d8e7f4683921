"""One vocabulary for text, image codes and special tokens: the only place that knows ids."""

import dataclasses
from typing import Any

import numpy as np

from chexmix_jax.errors import UserError

WHITE_SPACE_RUNS = (
    *(" " * length for length in range(31, 1, -1)),
    *("\t" * length for length in range(9, 1, -1)),
)
"""What CodeGen and the published model add behind the GPT-2 vocabulary, in the order of the ids."""

SPECIAL_TOKENS = (
    "<|img|>", "<|/img|>", "<|imgpad|>",
    *(f"<|{slash}{name}|>" for name in ("ref", "box", "quad") for slash in ("", "/")),
    *(f"<|coord_{i}|>" for i in range(10)),
    *(f"<|extra_{i}|>" for i in range(54)),
)  # fmt: skip
"""What the published model adds behind those, in the order of the ids; the first two are used."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Where every kind of token lives.

  A document is `boi · image ids in raster order · eoi · eot · text ids`; the token after its last
  one is the next document's `boi`, which therefore also ends a report; see `report_end`.

  Attributes:
    size: rows of the embedding table.
    num_text: text ids are [0, num_text), the ids of the text tokenizer.
    image_offset: id of image code 0; codes take [image_offset, image_offset + num_codes).
    num_codes: entries of the image tokenizer's codebook.
    boi: begin of image (I_s).
    eoi: end of image (I_E).
    eot: start of text (T_s); in the published model the text tokenizer's end-of-text.
    mask: stands in for a hidden input token.
    pad: fills rows; never a target with weight.
    extra_offset: id of the first text token that was added later, see `extended`.
    extra_text: how many were added; 0 for none.
  """

  size: int
  num_text: int
  image_offset: int
  num_codes: int
  boi: int
  eoi: int
  eot: int
  mask: int
  pad: int
  extra_offset: int = 0
  extra_text: int = 0

  def __post_init__(self):
    special = {name: getattr(self, name) for name in ("boi", "eoi", "eot", "mask", "pad")}
    if len(set(special.values())) != len(special):
      raise UserError(f"The special ids {special} must differ from one another.")
    image_end = self.image_offset + self.num_codes
    for name, value in special.items():
      if not 0 <= value < self.size or self.image_offset <= value < image_end:
        raise UserError(
            f"{name}={value} must be below size={self.size} and outside the image ids"
            f" {self.image_offset}..{image_end - 1}."
        )
    if image_end > self.size or self.num_text > self.image_offset:
      raise UserError(
          f"Text ids 0..{self.num_text - 1} and image ids {self.image_offset}..{image_end - 1} must"
          f" not overlap and must fit into size={self.size}."
      )

  @classmethod
  def sentencepiece(cls, num_text: int, num_codes: int) -> "Vocabulary":
    """Our own layout: text, then boi, eoi, eot, then image codes, then mask and pad.

    The special ids lie outside the text tokenizer's, so no report text can spell one. The size is
    rounded up to a multiple of 64, so that the table divides over the devices.
    """
    offset = num_text + 3
    size = -(-(offset + num_codes + 2) // 64) * 64
    return cls(
        size=size, num_text=num_text, image_offset=offset, num_codes=num_codes,
        boi=num_text, eoi=num_text + 1, eot=num_text + 2,
        mask=offset + num_codes, pad=offset + num_codes + 1,
    )  # fmt: skip

  @classmethod
  def bpe(cls, num_text: int, num_codes: int) -> "Vocabulary":
    """The published model's layout: text, SPECIAL_TOKENS, image codes, then mask and pad.

    The text ids are those of a BPETokenizer: eot is its end-of-text, behind which come only the
    WHITE_SPACE_RUNS. The special ids begin with boi and eoi; the others have no part in a document.
    That the last two rows are mask and pad is inferred.
    """
    offset = num_text + len(SPECIAL_TOKENS)
    return cls(
        size=offset + num_codes + 2, num_text=num_text, image_offset=offset, num_codes=num_codes,
        boi=num_text, eoi=num_text + 1, eot=num_text - len(WHITE_SPACE_RUNS) - 1,
        mask=offset + num_codes, pad=offset + num_codes + 1,
    )  # fmt: skip

  @classmethod
  def published(cls) -> "Vocabulary":
    """That of the published model: GPT-2's BPE and 8,192 codes."""
    return cls.bpe(num_text=50295, num_codes=8192)

  def extended(self, extra_text: int) -> "Vocabulary":
    """The same ids, and behind them all those of text tokens that were added to the tokenizer.

    The size stays a multiple of 64 where it is one. UserError where some were added before.
    """
    if self.extra_text:
      raise UserError("The vocabulary was extended before; extend the first one by all tokens.")
    size = self.size + extra_text
    if self.size % 64 == 0:
      size = -(-size // 64) * 64
    return dataclasses.replace(
        self, size=size, extra_offset=self.size, extra_text=extra_text
    )

  @property
  def text_vocab_size(self) -> int:
    """Ids of the text tokenizer, those that were added among them."""
    return self.num_text + self.extra_text

  @property
  def report_end(self) -> int:
    """The id that a decoder waits for at the end of a report.

    eot where it is one of the text tokenizer's ids, as in the published model; else boi.
    """
    return self.eot if self.eot < self.num_text else self.boi

  def codes_to_ids(self, codes: np.ndarray) -> np.ndarray:
    """Token ids of image codes, same shape."""
    return codes + self.image_offset

  def ids_to_codes(self, ids: np.ndarray) -> np.ndarray:
    """Image codes of token ids, same shape; the ids must be image ids."""
    return ids - self.image_offset

  def text_to_ids(self, text: np.ndarray) -> np.ndarray:
    """Token ids of the text tokenizer's ids, same shape."""
    return np.where(text < self.num_text, text, text - self.num_text + self.extra_offset)

  def ids_to_text(self, ids: np.ndarray) -> np.ndarray:
    """The text tokenizer's ids of token ids, same shape; the ids must be text."""
    return np.where(ids < self.num_text, ids, ids - self.extra_offset + self.num_text)

  def is_image(self, ids: Any) -> Any:
    """Which ids are image codes."""
    return (ids >= self.image_offset) & (ids < self.image_offset + self.num_codes)

  def is_text(self, ids: np.ndarray) -> np.ndarray:
    """Which ids are report text (the start-of-text token is not)."""
    is_extra = (ids >= self.extra_offset) & (ids < self.extra_offset + self.extra_text)
    return ((ids < self.num_text) & (ids != self.eot)) | is_extra

  def to_dict(self) -> dict[str, Any]:
    """Plain dict for a JSON file, which says nothing of added tokens where there are none."""
    facts = dataclasses.asdict(self)
    return {k: v for k, v in facts.items() if self.extra_text or not k.startswith("extra_")}
