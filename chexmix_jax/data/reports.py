"""Reports: sections of free text, clean-up, and the text that a model learns."""

import dataclasses
import re
from collections.abc import Sequence

SECTIONS = ("indication", "findings", "impression")

_HEADINGS = {
    "indication": ("indication", "clinical history", "history", "clinical information",
                   "reason for exam", "reason for examination", "clinical indication"),
    "findings": ("findings", "finding", "findings and impression", "findings/impression"),
    "impression": ("impression", "impressions", "conclusion", "conclusions"),
}  # fmt: skip
_SECTION_OF = {heading: name for name, headings in _HEADINGS.items() for heading in headings}
# A heading is at most five words before a colon, at the start of a line; MIMIC-CXR's are in
# capitals and may stand in mid line. What stands under others (TECHNIQUE, COMPARISON) is left out.
_HEADING = re.compile(
    r"^[ \t]*([A-Za-z]+(?:[ /&-][A-Za-z]+){0,4})[ \t]*:|(?<=\s)([A-Z]{4,}(?: [A-Z]+){0,4}):", re.M
)
# What was removed to hide a name or a date: ___ in MIMIC-CXR, XXXX in OpenI.
_REMOVED = re.compile(r"_{2,}|\bX{3,}\b|\[\*\*.*?\*\*\]")
_LIST_NUMBER = re.compile(r"(^|(?<=[.:;?!]\s))\s*\(?\d{1,2}[.)]\s+(?=[A-Za-z])")
_SPACE_BEFORE = re.compile(r"\s+([.,;:?!)])")
# Around the places of removed words, \0 each: brackets, and the second of two marks.
_EMPTY_BRACKETS = re.compile(r"\(\s*(?:\0\s*)+\)")
_TWO_MARKS = re.compile(r"([.,;:])\s*(?:\0\s*)+([.,;:])")


@dataclasses.dataclass(frozen=True)
class Sections:
  """The parts of a report; "" where there is none.

  Attributes:
    language: ISO 639-1, of all of them.
  """

  indication: str = ""
  findings: str = ""
  impression: str = ""
  language: str = "en"


def parse_sections(text: str) -> Sections:
  """The sections of a free-text report by its headings.

  Text before the first heading is dropped where there is one (titles, names of procedures); a
  report without any is all findings. A section that stands twice is joined. Where neither findings
  nor impression have a heading, the last paragraph is the findings, as in the section script that
  MIMIC-CXR comes with.
  """
  parts: dict[str, list[str]] = {name: [] for name in SECTIONS}
  section, start, is_headed = "", 0, False
  for match in _HEADING.finditer(text):
    heading = match[1] or match[2]
    name = _SECTION_OF.get(heading.lower(), "")
    # "Heart: normal" under FINDINGS is text; an unknown heading is one in capitals.
    if not name and not (heading.isupper() and len(heading) > 3):
      continue
    if section:
      parts[section].append(text[start : match.start()])
    section, start, is_headed = name, match.end(), True
  if section:
    parts[section].append(text[start:])
  if not is_headed:
    return Sections(findings=text)
  joined = {name: " ".join(map(str.strip, found)).strip() for name, found in parts.items()}
  if not joined["findings"] and not joined["impression"]:
    paragraph = re.split(r"\n\s*\n", text.strip())[-1].strip()
    # What stands under the last heading is that section, and no finding.
    if not _HEADING.match(paragraph):
      joined |= {"findings": paragraph}
      joined["indication"] = joined["indication"].removesuffix(paragraph).rstrip()
  return Sections(**joined)


def clean(text: str) -> str:
  """The text as a model learns it.

  Removed words (`___`, `XXXX`, `[** **]`) and list numbers are dropped, with what they leave
  behind: spaces before punctuation, marks without words between them (a full stop stays), empty
  brackets. Every run of white space is one space.
  """
  text = text.encode(errors="replace").decode()  # JSON can spell half of a character.
  text = _REMOVED.sub("\0", " ".join(text.replace("\0", " ").split()))
  text = _EMPTY_BRACKETS.sub("\0", text)
  while text != (text := _TWO_MARKS.sub(lambda m: "." if m[2] == "." else m[1], text)):
    pass
  text = _LIST_NUMBER.sub(" ", " ".join(text.replace("\0", " ").split()))
  text = _SPACE_BEFORE.sub(r"\1", text)
  return " ".join(text.split()).lstrip(" .,;:?!)")


def compose(sections: Sections, order: Sequence[str]) -> str:
  """The cleaned sections named in `order`, in that order, without those that are empty."""
  return " ".join(filter(None, (clean(getattr(sections, name)) for name in order)))
