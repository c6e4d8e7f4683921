"""The words of the labeler, in tables; reader.py has the rules that read with them.

How to add a phrase:

- Every phrase is lower case and stands for whole words; a report is read in lower case, with single
  spaces, and without the blanks (XXXX, ___) that removed names leave.
- A phrase is a regular expression, and plain words are themselves. What the tables use of it:
  `s?` an s or none, `a|b` one of two, `(?:…)` a group, `\\w+` the rest of a word or a whole one.
- Where two phrases of a table begin at the same word, the one that stands first in the table wins;
  where they begin at different words, the first in the text does. So a phrase that is NOT what a
  shorter one says goes under "none": "pericardial effusion" keeps "effusion" from being read.
- Add a sentence to tests/labeler/test_reader.py with what it must say, and run
  `python -m chexmix_jax.labeler.measure` (docs/labeler.md) before and after.
"""

import dataclasses

from chexmix_jax.labels import POSITIVE, UNCERTAIN


@dataclasses.dataclass(frozen=True)
class Noun:
  """A way to name findings.

  Attributes:
    findings: names in CHEXPERT_14; none for what only looks like a finding.
    phrases: how it is written.
    value: what it says where no cue says otherwise.
  """

  findings: tuple[str, ...]
  phrases: tuple[str, ...]
  value: int = POSITIVE


# --- What is mentioned ---------------------------------------------------------------------------

NOUNS = {
    "none": Noun((), (
        "pericardial effusions?", "joint effusions?", "mass effect", "leads? to",
        "(?:soft tissue|subcutaneous|peripheral|chest wall) o?edema",
        "(?:granulomatous|tuberculous|tuberculosis|histoplasmosis) infections?",
    )),
    "heart": Noun(("Cardiomegaly",), ("cardiomegaly",)),
    "air_and_fluid": Noun(("Pneumothorax", "Pleural Effusion"), (
        "ha?emopneumothora(?:x|ces)", "hydropneumothora(?:x|ces)",
    )),
    "air": Noun(("Pneumothorax",), (
        r"pneumothora\w+", "pleural air", "air in the pleural space",
    )),
    "fluid": Noun(("Pleural Effusion",), (
        "effusions?", "pleural fluid", r"ha?emothora\w+", r"hydrothora\w+",
    )),
    # An angle or a sulcus that is blunted may hold fluid.
    "blunt": Noun(("Pleural Effusion",), ("blunting", "blunted"), UNCERTAIN),
    "pleura": Noun(("Pleural Other",), (
        r"pleural(?: \w+)? (?:thickening|plaques?|scar\w*|calcifications?|capping)",
        r"(?:bi)?apical (?:\w+ ){0,2}(?:thickening|cap|caps|capping)",
        r"(?:inter)?(?:fissural|fissure|lobar) thickening",
        r"thickening of the (?:\w+ ){0,3}(?:pleura|fissures?)",
        "fibrothorax", r"pleuro-?\s?parenchymal \w+",
    )),
    "consolidation": Noun(("Consolidation",), (r"consolidat\w+",)),
    "pneumonia": Noun(("Pneumonia",), (
        r"pneumonia\w*", "pneumonic", r"bronchopneumonia\w*", "superinfection", "infectious",
        "infections?",
    )),
    "atelectasis": Noun(("Atelectasis",), (
        r"atelecta\w+", "(?:lobar|lobe|lung) collapse",
        r"collapsed? (?:of )?(?:the |a )?(?:\w+ ){0,5}(?:lungs?|lobes?)",
    )),
    "edema": Noun(("Edema",), ("o?edema", "fluid overload", "heart failure", "chf")),
    "congestion": Noun(
        ("Edema",), ("(?:vascular|pulmonary|venous|central) congestion",), UNCERTAIN
    ),
    "lesion": Noun(("Lung Lesion",), (
        "nodules?", "nodularity",
        r"nodular (?:\w+ ){0,3}(?:densit|opaci|infiltrat|lesion)\w+", "mass-?like",
        "mass(?:es)?", "neoplasms?", "carcinoma", "tumors?",
        "(?:lung|pulmonary|cavitary|parenchymal) lesions?",
    )),
    "opacity": Noun(("Lung Opacity",), (
        r"opaci\w+", r"infiltrat\w+", r"air[ -]?space (?:disease|process\w*|densit\w+)",
        r"(?:increased|hazy|patchy|focal|streaky|interstitial|linear|basilar) densit\w+",
        r"(?:increased|prominent|coarse\w*) interstitial (?:lung )?markings", "reticulation",
    )),
    "fracture": Noun(("Fracture",), (r"fractur\w+",)),
    "device": Noun(("Support Devices",), (
        "pacemakers?", "pacer", "a?icd", "defibrillator", "leads?", "electrodes?", "generator",
        "catheters?", "picc(?: lines?)?", r"port-?a-?cath\w*", "mediport",
        "(?:chest|infusion) port", "lines and tubes", "tubes?", "tubing", "tracheostomy",
        "(?:central|venous|jugular|subclavian|arterial|support) lines?", r"intubat\w+",
        "swan[ -]ganz", "drains?", "shunts?", "stents?", "devices?", "(?:neuro)?stimulators?",
        "(?:sternal|sternotomy|cerclage) (?:wires?|sutures?)", "clips",
        r"(?:prosthetic|replaced|mechanical|artificial) (?:\w+ )?valves?",
        "prosthe(?:sis|ses|tic)", "hardware", "screws?", "arthroplasty", "balloon pump",
    )),
}  # fmt: skip

# Structures whose state, normal or enlarged, speaks of findings: findings and phrases.
STRUCTURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": ((), ("heart failure", "heart rate")),
    "both": (("Cardiomegaly", "Enlarged Cardiomediastinum"), (
        r"cardio ?-?mediastin\w+(?: silhouettes?| contours?| structures?)?",
    )),
    "heart": (("Cardiomegaly",), (
        "heart(?: size| silhouette| contours?| shadow)?",
        "cardi(?:ac|opericardial)(?: silhouettes?| size| contours?| shadow| outline)?",
    )),
    "mediastinum": (("Enlarged Cardiomediastinum",), (
        "mediastin(?:um|al)(?: silhouettes?| contours?| structures?| size| width)?",
    )),
    "lungs": (("Lung Opacity", "Consolidation"), (
        "lungs?(?: fields?| bases| apices| parenchyma)?",
    )),
    "pleura": (("Pleural Effusion",), (r"costophrenic \w+", "pleural (?:spaces?|surfaces?)")),
    "bones": (("Fracture",), ("bones", r"(?:bony|osseous|skeletal) \w+", "ribs")),
}  # fmt: skip

# Normal is the absence of a structure's findings, large their presence (of the heart and the
# mediastinum alone); prominent and borderline are uncertain.
STATES = {
    "borderline": (
        r"borderline(?: \w+)?",
        r"(?:(?:upper )?limits? (?:of )?)?normal (?:or|to|versus) (?:\w+ )?(?:enlarged|large)",
    ),
    "normal": (
        "(?:at |within )?(?:the )?(?:upper )?limits? (?:of )?normal", "top[ -]normal",
        "within normal(?: limits)?", "normal limits", "normal", "unremarkable", "clear(?! of)",
        "intact", "sharp",
    ),
    "prominent": ("prominent", "prominence"),
    "large": ("enlarged", "enlargement", "large", "widened", "widening", "wide"),
}  # fmt: skip

# --- What is said of it --------------------------------------------------------------------------

_SEEN = (
    "(?:seen|identified|visuali[sz]ed|present|evident|demonstrated|appreciated|noted|detected"
    "|observed|found|apparent)"
)
_IS = "(?:is|are|was|were|be|been|remains?|appears?)"

# "…_after" stands after what it is said of, the others before. Possible, probable and borderline
# make a mention uncertain, and name its doubt; denial makes it negative.
CUES = {
    # Looks like a negation and is none.
    "none": (
        r"(?:no|without|not)(?: (?:any|significant|significantly|interval|appreciable|definite"
        r"|substantial|substantially|major|much|convincing|new))* changed?",
        r"no (?:\w+ ){0,2}(?:increase|decrease|improvement|progression|worsening) (?:in|of)",
        "not (?:only|well|fully|completely|optimally|adequately)",
        r"(?:near(?:ly)?|almost|partial(?:ly)?|incomplete(?:ly)?|not)(?: \w+)? resol\w+",
    ),
    "possible_after": (
        r"(?:can ?not|can't|could not|may not|not)(?: \w+)? (?:be )?(?:\w+ )?"
        "(?:excluded|ruled out)",
        r"difficult to (?:\w+ )?exclude$", "(?:is|are)(?: also)? in the differential",
        rf"{_IS}(?: also| again)? (?:possible|suspected|questioned|questionable|suggested"
        "|considered|(?:a |another )?(?:consideration|concern|possibility))",
        "(?:may|might|could)(?: also)? be (?:present|considered)",
        "(?:is|are|felt) (?:less likely|unlikely)",
        "(?:suspected|questioned)$",
    ),
    "possible": (
        r"(?:can ?not|can't|could not|not|difficult to)(?: \w+){0,2} (?:exclude|rule out)",
        r"possib\w+", "questionable", "question(?: of)?", r"suspect\w*", "suspicious for",
        "suspicion (?:of|for)", "concern(?:ing)? (?:of|for)", "worrisome for",
        "(?:may|might|could)(?: also| well)?(?: be)?", "maybe", "perhaps", "exclude",
        "rule out", "equivocal", "considered", "consideration", r"evaluat\w+ for",
        "for evaluation of", "less likely", "unlikely",
        r"correlat\w+(?: \w+)? (?:for|as to|with)", "differential",
    ),
    "probable": ("probabl[ey]", r"presum\w+", r"favou?r\w*"),
    "borderline": ("borderline",),
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
}  # fmt: skip

# Between two findings of which one is there: this or that.
ALTERNATIVES = ("or", "and ?/ ?or", "vs", "versus")

# Where what was said of one thing stops to hold.
CLAUSE_ENDS = (
    r"\b(?:but|however|although|though|except|aside from|apart from|other than|whereas|while"
    r"|otherwise|there (?=(?:is|are|has|have|may)\b))",
    r", (?:and )?(?:with|the|there)\b",
    r"\band (?=the\b)",
    r"(?:,|\band) (?=(?:stable|unchanged|persistent)\b)",
)
VERBS = ("is", "are", "was", "were", "be", "appears?", "remains?", "has", "have")
SEEN = (_SEEN,)
# How much there is of a finding that a list goes on to: "no pneumothorax, small effusion".
GRADES = ("tiny", "trace", "minimal", "small", "mild", "moderate", "severe", "possible")

# --- Where it is ---------------------------------------------------------------------------------

SIDES = {
    "bilateral": (
        "(?:left|right)(?:-sided)?(?: and | or |/| (?:greater|more|worse|larger) than )(?:the )?"
        "(?:left|right)",
        r"bilateral\w*", "both", "bi(?:basilar|basal|apical)",
    ),
    "left": ("left(?! heart| atri| ventric)", "lingula", "lingular"),
    "right": ("right(?! heart| atri| ventric)", "middle lobe"),
}  # fmt: skip

# Only words of a place in the lung: "upper limits of normal" is none.
_PART = "(?:lobes?|lungs?|lung fields?|zones?|fields?|hemithorax)"
ZONES = {
    "upper": (
        f"upper[ -]{_PART}", "upper (?=(?:and|or|to) (?:mid|middle|lower) )", "(?:bi)?apical",
        "apex", "apices",
    ),
    "mid": (
        f"mid(?:dle)?[ -]?{_PART}", "mid(?:dle)? (?=(?:and|or|to) (?:upper|lower) )", "lingula",
        "lingular",
    ),
    "lower": (
        f"lower[ -]{_PART}", "lower (?=(?:and|or|to) (?:mid|middle|upper) )",
        "(?:bi)?(?:basilar|basal)", "bases?", "retrocardiac",
    ),
}  # fmt: skip
