"""Mentions of findings in a report: the scope rules that read with the tables of phrases.py."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from chexmix_jax.labeler import phrases
from chexmix_jax.labeler.mention import Mention
from chexmix_jax.labels import NEGATIVE, POSITIVE, UNCERTAIN

# Findings of size, without a side.
_SIZED = ("Cardiomegaly", "Enlarged Cardiomediastinum")
_WITHOUT_ZONE = (*_SIZED, "Fracture", "Support Devices")


def find_mentions(report: str) -> tuple[Mention, ...]:
  """Every mention of a finding, in the order of the text; () for a text without any."""
  sentences = split_sentences(report)
  return tuple(mention for sentence in sentences for mention in _read_sentence(sentence))


def split_sentences(report: str) -> list[str]:
  """The sentences as they are read: in lower case, with single spaces and without blanks."""
  text = _BLANK.sub(" ", report.lower().replace("vs.", "vs"))
  return [" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text)]


_SENTENCE_END = re.compile(r"[.;!?]+(?!\d)|\n\s*\n")
# What is left of names and dates that were removed.
_BLANK = re.compile(r"\bx{3,}\b|_{2,}")


def _one_of(alternatives: Iterable[str]) -> str:
  return rf"\b(?:{'|'.join(alternatives)})\b"


def _compile(table: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
  """One pattern for whole words; `lastgroup` of a match is the key whose phrase matched.

  The groups are empty and stand last: a branch that begins with a letter is dismissed fast.
  """
  branches = (rf"(?:{'|'.join(p)})\b(?P<{name}>)" for name, p in table.items())
  return re.compile(rf"\b(?:{'|'.join(branches)})")


_NOUN = _compile({name: noun.phrases for name, noun in phrases.NOUNS.items()})
_STRUCTURE = _compile({name: written for name, (_, written) in phrases.STRUCTURES.items()})
_STATE = _compile(phrases.STATES)
_CUE = _compile(phrases.CUES)
_SIDE = _compile(phrases.SIDES)
_ZONE = _compile(phrases.ZONES)

_CLAUSE_END = re.compile("|".join(phrases.CLAUSE_ENDS))
_VERB = re.compile(_one_of(phrases.VERBS))
_NEXT_STATEMENT = re.compile(rf"{_VERB.pattern}.*(?:,| and )|{_one_of(phrases.SEEN)},")
_GRADED = rf"(?:\w+ )?{_one_of(phrases.GRADES)}"
_GRADED_AFTER_COMMA = re.compile(f", {_GRADED}")
_GRADED_AFTER_WITH = re.compile(rf"\bwith {_GRADED}")
_LISTED = re.compile(r"\b(?:or|nor)\b")
_OR_NEXT = re.compile(rf"\s*,?\s*{_one_of(phrases.ALTERNATIVES)}")
_OR_LAST = re.compile(rf"{_one_of(phrases.ALTERNATIVES)}\s+(?:\w+\s+){{0,2}}$")

_JOINT = re.compile(r",|\b(?:and|with|without)\b")
# What may stand between "enlarged" and a structure on either side of it.
_OF_THE = re.compile(
    r" (?:of |in )?(?:the )?(?:(?:heart|cardiac|mediastinal)(?: size| silhouette)? (?:and|or) )?"
)
_ADVERB = re.compile(r" (?:\w+ly )?")
_NO_NOUN_NEXT = re.compile(r"\s*(?:$|,|(?:in|and|for|as|with|without|bilaterally)\b)")
_NOT_ATTRIBUTE = re.compile(r" (?:and|or|with|without|in|for|as)\b")


@functools.lru_cache(maxsize=1 << 15)
def _read_sentence(sentence: str) -> tuple[Mention, ...]:
  return tuple(m for clause in _CLAUSE_END.split(sentence) for m in _read_clause(clause))


def _read_clause(clause: str) -> list[Mention]:
  nouns = [noun for noun in _NOUN.finditer(clause) if noun.lastgroup != "none"]
  structures = [found for found in _STRUCTURE.finditer(clause) if found.lastgroup != "none"]
  if not nouns and not structures:
    return []
  cues = list(_CUE.finditer(clause))
  sides, zones = list(_SIDE.finditer(clause)), list(_ZONE.finditer(clause))
  found: list[tuple[int, Mention]] = []
  for noun in nouns:
    told = phrases.NOUNS[str(noun.lastgroup)]
    said, doubt = _judge(clause, cues, noun.start(), noun.end(), told.value)
    side = _find_side(clause, noun, nouns, sides)
    zone = _find_zone(clause, noun, nouns, sides, zones)
    for name in told.findings:
      place = ("" if name in _SIZED else side, "" if name in _WITHOUT_ZONE else zone)
      found.append((noun.start(), Mention(name, said, *place, doubt)))
  for structure in structures:
    names, _ = phrases.STRUCTURES[str(structure.lastgroup)]
    value, doubt = _find_state(clause, cues, structure)
    if value == NEGATIVE or (value is not None and names[0] in _SIZED):
      found += [(structure.start(), Mention(name, value, "", "", doubt)) for name in names]
  return [mention for _, mention in sorted(found, key=lambda item: item[0])]


def _judge(
    clause: str, cues: Sequence[re.Match], start: int, end: int, stated: int
) -> tuple[int, str]:
  """Value and doubt of what stands at [start, end): `stated` where no cue reaches it."""
  after = {
      cue.lastgroup
      for cue in cues
      if cue.start() >= end and _reaches_back(clause[end : cue.start()])
  }
  if "possible_after" in after:
    return UNCERTAIN, "possible"
  before = {
      cue.lastgroup: cue for cue in cues if cue.end() <= start and _reaches_on(clause, cue, start)
  }
  denial = before.get("denial")
  doubt = next((name for name in _DOUBTS if name in before), None)
  # "No sign suspicious for X" denies X; "no Y, possibly X" doubts it.
  if denial and not (doubt and "," in clause[denial.end() : before[doubt].start()]):
    return NEGATIVE, ""
  if "denial_after" in after:
    return NEGATIVE, ""
  either = _OR_NEXT.match(clause, end) or _OR_LAST.search(clause[:start])
  # "No change in X or Y" speaks of both.
  if not doubt and either and "none" not in before:
    doubt = "alternative"
  if doubt:
    return UNCERTAIN, doubt
  return stated, "sign" if stated == UNCERTAIN else ""


# The stronger first.
_DOUBTS = ("possible", "probable", "borderline")


def _reaches_back(between: str) -> bool:
  return "," not in between or " and " in between or _LISTED.search(between) is not None


def _reaches_on(clause: str, cue: re.Match, start: int) -> bool:
  between = clause[cue.end() : start]
  if _NEXT_STATEMENT.search(between) or _GRADED_AFTER_WITH.search(between):
    return False
  if "," not in between or _LISTED.search(clause, cue.end()):
    return True
  if cue.lastgroup == "denial":
    return not _GRADED_AFTER_COMMA.search(between)
  return cue.group() == "differential"


def _find_state(
    clause: str, cues: Sequence[re.Match], structure: re.Match
) -> tuple[int | None, str]:
  """Value and doubt that a structure's state stands for; None where no state is told."""
  start, end = structure.span()
  state = _STATE.search(clause, end)
  first = start
  if state and _is_predicate(clause, end, state):
    # "No cardiac enlargement", but "no effusion, the heart is enlarged".
    first = end if _VERB.search(clause, end, state.start()) else 0
  else:
    earlier, first = list(_STATE.finditer(clause, 0, start)), 0
    if not earlier or not _is_attribute(clause[earlier[-1].end() : start], earlier[-1]):
      return None, ""
    state = earlier[-1]
  reaching = [cue for cue in cues if first <= cue.start() and cue.end() <= state.start()]
  if first == 0:
    reaching += [cue for cue in cues if cue.start() >= state.end()]
  told, doubt = _judge(clause, reaching, state.start(), state.end(), POSITIVE)
  if state.lastgroup == "normal":
    return (NEGATIVE if told == POSITIVE else None), ""
  if told == POSITIVE and state.lastgroup != "large":
    return UNCERTAIN, "borderline" if state.lastgroup == "borderline" else "sign"
  return told, doubt


def _is_predicate(clause: str, end: int, state: re.Match) -> bool:
  """Whether a state is said of the structure before it: "heart size is normal"."""
  between = clause[end : state.start()].removeprefix(", which")
  verbs = list(_VERB.finditer(between))
  listed = "," not in between or " and " in between
  if len(verbs) > 1 or not listed or re.search(r"\bwith", between):
    return False
  if verbs:
    return len(between[verbs[0].end() :].split()) <= 3
  if state.lastgroup != "normal":
    return _ADVERB.fullmatch(between) is not None
  phrase = " " in state.group()
  return len(between.split()) <= 6 and (phrase or bool(_NO_NOUN_NEXT.match(clause, state.end())))


def _is_attribute(between: str, state: re.Match) -> bool:
  """Whether a state is said of the structure after it: "normal heart size"."""
  if state.lastgroup != "normal":
    return _OF_THE.fullmatch(between) is not None
  plain = not _VERB.search(between) and "," not in between and not _NOT_ATTRIBUTE.match(between)
  return plain and len(between.split()) <= 4


def _find_side(
    clause: str, noun: re.Match, nouns: Sequence[re.Match], sides: Sequence[re.Match]
) -> str:
  """The side that belongs to a mention, else the last one named before it, else the first after."""
  if not sides:
    return ""
  earlier = [side for side in sides if side.end() <= noun.start()]
  other = earlier[-1] if earlier else sides[0]
  return str((_find_own(clause, noun, nouns, sides) or other).lastgroup)


def _find_zone(
    clause: str,
    noun: re.Match,
    nouns: Sequence[re.Match],
    sides: Sequence[re.Match],
    zones: Sequence[re.Match],
) -> str:
  """The zone that belongs to a mention, else the one zone named before it: "X at the base and Y".

  With several sides in a clause there are several places, and another's zone is not taken.
  """
  own = _find_own(clause, noun, nouns, zones)
  if own:
    return str(own.lastgroup)
  names = {str(zone.lastgroup) for zone in zones}
  alone = len(names) == 1 and len({side.lastgroup for side in sides}) <= 1
  return names.pop() if alone and zones[0].start() < noun.start() else ""


def _find_own(
    clause: str, noun: re.Match, nouns: Sequence[re.Match], places: Sequence[re.Match]
) -> re.Match | None:
  """The place that is named inside a mention, else just before, else just after it."""
  start, end = noun.span()

  def is_next(low: int, high: int) -> bool:
    between = any(low <= other.start() and other.end() <= high for other in nouns)
    return low <= high and not between and not _JOINT.search(clause, low, high)

  inside = [place for place in places if start <= place.start() and place.end() <= end]
  before = [place for place in places if is_next(place.end(), start)]
  after = [place for place in places if is_next(end, place.start())]
  return next(iter(inside or before[-1:] or after), None)
