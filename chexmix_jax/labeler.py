"""CheXpert labels from a report's text, by rules.

In the manner of the NegBio (Peng et al. 2018, arXiv 1712.05898) and CheXpert (Irvin et al. 2019,
arXiv 1901.07031) labelers: mentions by pattern; negation and uncertainty by cues, with scopes
inside a clause of a sentence instead of a parse tree; then aggregation over the mentions.
"""

import dataclasses
import functools
import re

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.labels import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN

_HEART, _MEDIASTINUM = "Cardiomegaly", "Enlarged Cardiomediastinum"


@dataclasses.dataclass(frozen=True)
class Mention:
  """One place where a report speaks of a finding.

  Attributes:
    finding: a name in CHEXPERT_14.
    value: POSITIVE, NEGATIVE or UNCERTAIN, of chexmix_jax.labels.
    side: left, right or bilateral; "" where none is named.
  """

  finding: str
  value: int
  side: str


def label_report(report: str) -> np.ndarray:
  """int8 (14,): values of chexmix_jax.labels; UNKNOWN is what the report does not mention.

  Of several mentions positive wins over uncertain and uncertain over negative. A finding in the
  lung is a Lung Opacity too (the label hierarchy, not the CheXpert labeler's own habit). No Finding
  is positive where nothing but support devices is positive or uncertain, so for an empty text too.
  """
  labels = np.full(len(labels_lib.CHEXPERT_14), UNKNOWN, np.int8)

  def mark(name: str, value: int) -> None:
    index = labels_lib.INDEX[name]
    if _RANK[value] > _RANK[int(labels[index])]:
      labels[index] = value

  found = False
  for mention in find_mentions(report):
    mark(mention.finding, mention.value)
    if mention.value != NEGATIVE:
      found |= mention.finding != "Support Devices"
      if mention.finding in labels_lib.OPACITIES:
        mark("Lung Opacity", mention.value)
  if not found:
    labels[labels_lib.INDEX["No Finding"]] = POSITIVE
  return labels


_RANK = {UNKNOWN: 0, NEGATIVE: 1, UNCERTAIN: 2, POSITIVE: 3}


def find_mentions(report: str) -> tuple[Mention, ...]:
  """Every mention of a finding, in the order of the text; () for a text without any."""
  text = report.lower().replace("vs.", "vs")
  sentences = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text))
  return tuple(mention for sentence in sentences for mention in _read_sentence(sentence))


_SENTENCE_END = re.compile(r"[.;!?]+(?!\d)|\n\s*\n")


# --- What is mentioned ---------------------------------------------------------------------------


def _compile(patterns: dict[str, tuple[str, ...]]) -> re.Pattern[str]:
  """One pattern for whole words; `lastgroup` of a match is the key whose pattern matched.

  The groups are empty and stand last: a branch that begins with a letter is dismissed fast.
  """
  branches = (rf"(?:{'|'.join(p)})\b(?P<{name}>)" for name, p in patterns.items())
  return re.compile(rf"\b(?:{'|'.join(branches)})")


# Findings, their value where no cue says otherwise, and how they are written.
_NOUNS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "heart": (("Cardiomegaly",), POSITIVE, ("cardiomegaly",)),
    "air_and_fluid": (("Pneumothorax", "Pleural Effusion"), POSITIVE, (
        r"h(?:a?emo|ydro)pneumothora\w+",
    )),
    "air": (("Pneumothorax",), POSITIVE, (r"pneumothora\w+",)),
    "fluid": (("Pleural Effusion",), POSITIVE, (
        r"effusions?(?<!pericardial effusion)(?<!pericardial effusions)(?<!joint effusion)",
        "pleural fluid", r"h(?:a?emo|ydro)thora\w+",
    )),
    # An angle or a sulcus that is blunted may hold fluid.
    "blunt": (("Pleural Effusion",), UNCERTAIN, ("blunting", "blunted")),
    "pleura": (("Pleural Other",), POSITIVE, (
        r"pleural(?: \w+)? (?:thickening|plaques?|scar\w*|calcifications?|capping)", "fibrothorax",
        r"pleuro-?\s?parenchymal \w+",
    )),
    "consolidation": (("Consolidation",), POSITIVE, (r"consolidat\w+",)),
    "pneumonia": (("Pneumonia",), POSITIVE, (
        r"pneumonia\w*", "pneumonic", r"bronchopneumonia\w*", "superinfection", "infectious",
        # What is left of old granulomatous disease is no pneumonia.
        r"infections?(?<!granulomatous infection)(?<!tuberculous infection)"
        r"(?<!tuberculosis infection)(?<!histoplasmosis infection)",
    )),
    "atelectasis": (("Atelectasis",), POSITIVE, (
        r"atelecta\w+", r"(?:lobar|lobe|lung) collapse",
        r"collapsed? (?:of )?(?:the |a )?(?:\w+ ){0,3}(?:lungs?|lobes?)",
    )),
    "edema": (("Edema",), POSITIVE, (
        r"o?edema(?<!tissue edema)(?<!subcutaneous edema)", "fluid overload", "heart failure",
        "chf",
    )),
    "congestion": (("Edema",), UNCERTAIN, (r"(?:vascular|pulmonary|venous|central) congestion",)),
    "lesion": (("Lung Lesion",), POSITIVE, (
        "nodules?", "nodularity", r"nodular (?:densit|opaci|infiltrat|lesion)\w+", "mass-?like",
        r"mass(?:es)?(?! effect)", "neoplasms?", "carcinoma", "tumors?",
        r"(?:lung|pulmonary|cavitary|parenchymal) lesions?",
    )),
    "opacity": (("Lung Opacity",), POSITIVE, (
        r"opaci\w+", r"infiltrat\w+", r"air[ -]?space (?:disease|process\w*|densit\w+)",
        r"(?:increased|hazy|patchy|focal|streaky|interstitial|linear|basilar) densit\w+",
        r"(?:increased|prominent|coarse\w*) interstitial (?:lung )?markings", "reticulation",
    )),
    "fracture": (("Fracture",), POSITIVE, (r"fractur\w+",)),
    "device": (("Support Devices",), POSITIVE, (
        "pacemakers?", "pacer", "a?icd", "defibrillator", "leads?(?! to)", "electrodes?",
        "generator", "catheters?", "picc(?: lines?)?", r"port-?a-?cath\w*", "mediport",
        "(?:chest|infusion) port", "lines and tubes", "tubes?", "tubing", "tracheostomy",
        "(?:central|venous|jugular|subclavian|arterial|support) lines?", r"intubat\w+",
        "swan[ -]ganz", "drains?", "shunts?", "stents?", "devices?", r"(?:neuro)?stimulators?",
        "(?:sternal|sternotomy|cerclage) (?:wires?|sutures?)",
        "clips", r"(?:prosthetic|replaced|mechanical|artificial) (?:\w+ )?valves?",
        r"prosthe(?:sis|ses|tic)", "hardware", "screws?", "arthroplasty", "balloon pump",
    )),
}  # fmt: skip
_NOUN = _compile({name: patterns for name, (_, _, patterns) in _NOUNS.items()})

# Structures whose state, normal or enlarged, speaks of findings.
_STRUCTURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "both": ((_HEART, _MEDIASTINUM), (
        r"cardio ?-?mediastin\w+(?: silhouettes?| contours?| structures?)?",
    )),
    "heart": ((_HEART,), (
        "heart(?: size| silhouette| contours?| shadow)?(?! failure| rate)",
        "cardi(?:ac|opericardial)(?: silhouettes?| size| contours?| shadow| outline)?",
    )),
    "mediastinum": ((_MEDIASTINUM,), (
        "mediastin(?:um|al)(?: silhouettes?| contours?| structures?| size| width)?",
    )),
    "lungs": (("Lung Opacity", "Consolidation"), (
        "lungs?(?: fields?| bases| apices| parenchyma)?",
    )),
    "pleura": (("Pleural Effusion",), (r"costophrenic \w+", "pleural (?:spaces?|surfaces?)")),
    "bones": (("Fracture",), ("bones", r"(?:bony|osseous|skeletal) \w+", "ribs")),
}  # fmt: skip
_STRUCTURE = _compile({name: patterns for name, (_, patterns) in _STRUCTURES.items()})

_STATE = _compile({
    "normal": (
        "(?:at |within )?(?:the )?(?:upper )?limits? (?:of )?normal", "top[ -]normal",
        "within normal(?: limits)?", "normal limits", "normal", "unremarkable", "clear(?! of)",
        "intact", "sharp",
    ),
    "borderline": (r"borderline(?: \w+)?",),
    "prominent": ("prominent", "prominence"),
    "large": ("enlarged", "enlargement", "large", "widened", "widening", "wide"),
})  # fmt: skip

# --- What is said of it --------------------------------------------------------------------------

_SEEN = (
    "(?:seen|identified|visuali[sz]ed|present|evident|demonstrated|appreciated|noted|detected"
    "|observed|found|apparent)"
)
_IS = "(?:is|are|was|were|be|been|remains?|appears?)"
_CUE = _compile({
    # Looks like a negation and is none.
    "none": (
        r"(?:no|without|not)(?: (?:any|significant|significantly|interval|appreciable|definite"
        r"|substantial|substantially|major|much|convincing|new))* changed?",
        r"no (?:\w+ ){0,2}(?:increase|decrease|improvement|progression|worsening) (?:in|of)",
        "not (?:only|well|fully|completely|optimally|adequately)",
        r"(?:near(?:ly)?|almost|partial(?:ly)?|incomplete(?:ly)?|not)(?: \w+)? resol\w+",
    ),
    # Uncertain: the cue after the mention, or before it.
    "doubt_after": (
        r"(?:can ?not|can't|could not|may not|not)(?: \w+)? (?:be )?(?:\w+ )?"
        "(?:excluded|ruled out)",
        "difficult to exclude$",
        rf"{_IS}(?: also| again)? (?:possible|suspected|questioned|questionable|suggested"
        "|considered|(?:a |another )?(?:consideration|concern|possibility))",
        "(?:may|might|could)(?: also)? be (?:present|considered)",
        "(?:is|are|felt) (?:less likely|unlikely)",
        "(?:suspected|questioned)$",
    ),
    "doubt": (
        r"(?:can ?not|can't|could not|not|difficult to)(?: \w+){0,2} (?:exclude|rule out)",
        r"possib\w+", "probabl[ey]", r"presum\w+", "questionable", "question(?: of)?",
        r"suspect\w*", "suspicious for", "suspicion (?:of|for)", "concern(?:ing)? (?:of|for)",
        "worrisome for", "may", "might", "could", "maybe", "perhaps", "exclude", "rule out",
        "equivocal", "borderline", "considered", "consideration", r"evaluat\w+ for",
        "for evaluation of", "less likely", "unlikely", r"correlat\w+(?: \w+)? for", r"favou?r\w*",
        "differential",
    ),
    # Absent: the cue after the mention, or before it.
    "denial_after": (
        rf"(?:not|no longer)(?: \w+)? {_SEEN}",
        "(?:has|have|had|is|are|now)(?: (?:now|been|completely|since|subsequently|largely))* "
        "(?:resolved|cleared|removed|absent|disappeared)",
        "(?:resolved|removed|absent|ruled out)$",
        rf"{_IS}(?: \w+)? (?:normal|unremarkable|within normal)",
    ),
    "denial": (
        "no", "not", "without", "negative for", "(?:free|clear|absence|lack|removal|resolution"
        "|clearing) of", "resolved", "absent", "nor", "neither", "never", "rather than",
    ),
})  # fmt: skip
# Where what was said of one thing stops to hold.
_CLAUSE_END = re.compile(
    r"\b(?:but|however|although|though|except|aside from|apart from|other than|whereas|while"
    r"|otherwise|there (?=(?:is|are|has|have|may)\b))|, (?:and )?(?:with|the|there)\b"
    r"|\band (?=the\b)|(?:,|\band) (?=(?:stable|unchanged|persistent)\b)"
)
_VERB = re.compile(r"\b(?:is|are|was|were|be|appears?|remains?|has|have)\b")
_NEXT_STATEMENT = re.compile(rf"{_VERB.pattern}.*(?:,| and )|\b{_SEEN},")
_GRADED_AFTER_COMMA = re.compile(
    r", (?:\w+ )?(?:tiny|trace|minimal|small|mild|moderate|severe|possible)\b"
)
_LISTED = re.compile(r"\b(?:or|nor)\b")
_ALTERNATIVE = "(?:or|and ?/ ?or|vs|versus)"
_OR_NEXT = re.compile(rf"\s*,?\s*{_ALTERNATIVE}\b")
_OR_LAST = re.compile(rf"\b{_ALTERNATIVE}\s+(?:\w+\s+){{0,2}}$")

_SIDE = _compile({
    "bilateral": (
        "(?:left|right)(?:-sided)?(?: and | or |/| (?:greater|more|worse|larger) than )(?:the )?"
        "(?:left|right)",
        r"bilateral\w*", "both", "bi(?:basilar|basal|apical)",
    ),
    "left": ("left(?! heart| atri| ventric)",),
    "right": ("right(?! heart| atri| ventric)",),
})  # fmt: skip
# Findings of size, without a side.
_SIZED = (_HEART, _MEDIASTINUM)

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
  nouns, structures = list(_NOUN.finditer(clause)), list(_STRUCTURE.finditer(clause))
  if not nouns and not structures:
    return []
  cues = list(_CUE.finditer(clause))
  found: list[tuple[int, Mention]] = []
  for noun in nouns:
    names, stated, _ = _NOUNS[str(noun.lastgroup)]
    value = _judge(clause, cues, noun.start(), noun.end(), stated)
    side = _find_side(clause, noun, nouns)
    found += [(noun.start(), Mention(n, value, "" if n in _SIZED else side)) for n in names]
  for structure in structures:
    names, _ = _STRUCTURES[str(structure.lastgroup)]
    state = _find_state(clause, cues, structure)
    if state == NEGATIVE or (state is not None and names[0] in _SIZED):
      found += [(structure.start(), Mention(name, state, "")) for name in names]
  return [mention for _, mention in sorted(found, key=lambda item: item[0])]


def _judge(clause: str, cues: list[re.Match], start: int, end: int, stated: int) -> int:
  """The value of what stands at [start, end): `stated` where no cue reaches it."""
  after = {
      cue.lastgroup
      for cue in cues
      if cue.start() >= end and _reaches_back(clause[end : cue.start()])
  }
  if "doubt_after" in after:
    return UNCERTAIN
  before = {
      cue.lastgroup: cue for cue in cues if cue.end() <= start and _reaches_on(clause, cue, start)
  }
  denial, doubt = before.get("denial"), before.get("doubt")
  # "No sign suspicious for X" denies X; "no Y, possibly X" doubts it.
  if denial and not (doubt and "," in clause[denial.end() : doubt.start()]):
    return NEGATIVE
  if "denial_after" in after:
    return NEGATIVE
  either = _OR_NEXT.match(clause, end) or _OR_LAST.search(clause[:start])
  # "No change in X or Y" speaks of both.
  if doubt or (either and "none" not in before):
    return UNCERTAIN
  return stated


def _reaches_back(between: str) -> bool:
  return "," not in between or " and " in between or _LISTED.search(between) is not None


def _reaches_on(clause: str, cue: re.Match, start: int) -> bool:
  between = clause[cue.end() : start]
  if _NEXT_STATEMENT.search(between):
    return False
  if "," not in between or _LISTED.search(clause, cue.end()):
    return True
  if cue.lastgroup == "denial":
    return not _GRADED_AFTER_COMMA.search(between)
  return cue.group() == "differential"


def _find_state(clause: str, cues: list[re.Match], structure: re.Match) -> int | None:
  """The value that a structure's state stands for; None where no state is told."""
  start, end = structure.span()
  state = _STATE.search(clause, end)
  first = start
  if state and _is_predicate(clause, end, state):
    # "No cardiac enlargement", but "no effusion, the heart is enlarged".
    first = end if _VERB.search(clause, end, state.start()) else 0
  else:
    earlier, first = list(_STATE.finditer(clause, 0, start)), 0
    if not earlier or not _is_attribute(clause[earlier[-1].end() : start], earlier[-1]):
      return None
    state = earlier[-1]
  reaching = [cue for cue in cues if first <= cue.start() and cue.end() <= state.start()]
  if first == 0:
    reaching += [cue for cue in cues if cue.start() >= state.end()]
  told = _judge(clause, reaching, state.start(), state.end(), POSITIVE)
  if state.lastgroup == "normal":
    return NEGATIVE if told == POSITIVE else None
  return UNCERTAIN if told == POSITIVE and state.lastgroup != "large" else told


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


def _find_side(clause: str, noun: re.Match, nouns: list[re.Match]) -> str:
  """The side that is named inside a mention, else just before, just after, or nearest to it."""
  sides = list(_SIDE.finditer(clause))
  if not sides:
    return ""
  start, end = noun.span()

  def is_next(low: int, high: int) -> bool:
    between = any(low <= other.start() and other.end() <= high for other in nouns)
    return low <= high and not between and not _JOINT.search(clause, low, high)

  inside = [side for side in sides if start <= side.start() and side.end() <= end]
  before = [side for side in sides if is_next(side.end(), start)]
  after = [side for side in sides if is_next(end, side.start())]
  by_distance = sorted(sides, key=lambda s: max(s.start() - end, start - s.end()))
  return str((inside or before[-1:] or after or by_distance)[0].lastgroup)
