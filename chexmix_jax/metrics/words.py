"""How reports are cut to words before they are compared, and the pairs that are compared.

A score is that of one rule: its name belongs beside every number.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from chexmix_jax.errors import UserError

References = Sequence[str | Sequence[str]]
"""What N items are compared with: a text, or several, for each."""

# Letters and digits; a hyphen or an apostrophe holds two of their runs together, and between digits
# a point or a comma does.
_RUN = r"[^\W_]+"
_WORD = re.compile(rf"{_RUN}(?:(?:['’-]|(?<=\d)[.,](?=\d)){_RUN})*")
_ALPHANUMERIC = re.compile(r"[a-z0-9]+")


def _lower_no_punctuation(text: str) -> list[str]:
  return _WORD.findall(unicodedata.normalize("NFC", text.lower()))


def _lower_alphanumeric(text: str) -> list[str]:
  return _ALPHANUMERIC.findall(text.lower())


RULES: Mapping[str, Callable[[str], list[str]]] = {
    "lower_no_punctuation": _lower_no_punctuation,
    "whitespace": str.split,
    "lower_alphanumeric": _lower_alphanumeric,
}
"""Rules by name, from a text to its words.

lower_no_punctuation: lower case; letters and digits are words and all else is dropped, but a hyphen
  or an apostrophe stays inside a word (`follow-up`, `patient's`) and a point or a comma inside a
  number (`3.5`). Accents count, however they are spelled in Unicode.
whitespace: what stands between white space, as it is; for texts that were cut to words before.
lower_alphanumeric: lower case, runs of a-z and 0-9: rouge-score's rule without its stemmer.
"""

DEFAULT_RULE = "lower_no_punctuation"


@dataclasses.dataclass(frozen=True)
class Pair:
  """The words of a candidate, and those of its references, of which there is at least one."""

  candidate: tuple[str, ...]
  references: tuple[tuple[str, ...], ...]


def cut(text: str, rule: str = DEFAULT_RULE) -> tuple[str, ...]:
  """The words of a text. Raises UserError for a rule that is not one of RULES."""
  if rule not in RULES:
    raise UserError(f"rule={rule!r} does not cut words; use one of {', '.join(RULES)}.")
  return tuple(RULES[rule](text))


def cut_pairs(
    candidates: Sequence[str], references: References, rule: str = DEFAULT_RULE
) -> list[Pair]:
  """The words of N candidates and of the references of each.

  A text may be empty. Raises UserError where there is no item, where the numbers of candidates and
  references differ, and where a text is missing, by the item's place from 0.
  """
  if isinstance(candidates, str) or isinstance(references, str):
    raise UserError("candidates or references is one text; give a list with a text for each item.")
  if len(candidates) != len(references):
    raise UserError(
        f"There are {len(candidates)} candidates and references of {len(references)} items; give"
        " references for each candidate, in the same order."
    )
  if not len(candidates):
    raise UserError("There are no candidates to score; give at least one, and its reference.")
  pairs = []
  for i, (candidate, given) in enumerate(zip(candidates, references, strict=True)):
    if not isinstance(candidate, str):
      raise UserError(f"candidates[{i}] is not a text; give one, empty where nothing was written.")
    if isinstance(given, str):
      texts: tuple[str, ...] = (given,)
    else:
      texts = tuple(given) if isinstance(given, Iterable) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
      raise UserError(f"references[{i}] lacks a text; give one or more, or leave that item out.")
    pairs.append(Pair(cut(candidate, rule), tuple(cut(text, rule) for text in texts)))
  return pairs
