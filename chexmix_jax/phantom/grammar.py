"""Writes radiology reports: what is there, in the order of KINDS, then what is not there.

Sentences are short and words few, so that a small language model learns them in minutes.
"""

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.phantom.findings import DEVICES, KINDS, Finding

# Stands for what CheXpert labels call Support Devices, where it is not known which.
_ANY_DEVICE = "support device"
_ORDER = (*KINDS, _ANY_DEVICE)

_NOUNS = {
    "cardiomegaly": ("cardiomegaly",),
    "mediastinum": ("widening of the mediastinum", "mediastinal widening"),
    "opacity": ("opacity", "airspace opacity"),
    "consolidation": ("consolidation", "airspace consolidation"),
    "pneumonia": ("pneumonia",),
    "nodule": ("nodule", "pulmonary nodule"),
    "edema": ("pulmonary edema", "interstitial edema"),
    "atelectasis": ("atelectasis",),
    "pneumothorax": ("pneumothorax",),
    "effusion": ("pleural effusion",),
    "thickening": ("pleural thickening",),
    "fracture": ("rib fracture",),
    "pacemaker": ("pacemaker",),
    "central line": ("central line", "central venous catheter"),
    "endotracheal tube": ("endotracheal tube",),
    _ANY_DEVICE: ("support device",),
}
_COUNTED = ("opacity", "nodule", "pneumothorax", "effusion", "fracture", *DEVICES, _ANY_DEVICE)

# {np} is the noun phrase, {a_np} the same with its article.
_CERTAIN = ("there is {a_np}.", "{np}.", "{a_np} is seen.", "{a_np} is present.")
_HEDGED = (
    "there may be {a_np}.", "possible {np}.", "{a_np} cannot be excluded.",
    "findings may represent {a_np}.",
)  # fmt: skip
_IN_PLACE = ("there is {a_np}.", "{a_np} is in place.", "{a_np} is seen.")
# More ways to say one kind of finding; {adverb} is a severity such as mildly.
_ALSO = {
    "cardiomegaly": ("the heart is {adverb} enlarged.", "{adverb} enlarged cardiac silhouette."),
    "mediastinum": ("the mediastinum is widened.", "widened mediastinum."),
    "central line": ("{np} with its tip in the superior vena cava.",),
    "endotracheal tube": ("{np} with its tip above the carina.",),
}

_DEGREES = {"small": "mild", "moderate": "moderate", "large": "severe"}
_ADVERBS = {"": "", "small": "mildly", "moderate": "moderately", "large": "severely"}
_BY_DEGREE = ("cardiomegaly", "edema")
_ZONES = {
    "upper": ("upper zone", "upper lobe"),
    "mid": ("mid zone", "mid lung"),
    "lower": ("lower zone", "lower lobe"),
}

_LUNGS = ("Lung Opacity", *labels_lib.OPACITIES)
# For each topic the findings that must all be absent and the ways to say so; the first that fits.
_ABSENT = (
    (
        (
            ("Cardiomegaly", "Enlarged Cardiomediastinum"),
            (
                "The cardiomediastinal silhouette is normal.",
                "The cardiomediastinal silhouette is within normal limits.",
                "Heart size and mediastinal contours are normal.",
                "The heart and mediastinum are normal.",
            ),
        ),
        (("Cardiomegaly",), ("Heart size is normal.", "The heart is normal in size.")),
        (
            ("Enlarged Cardiomediastinum",),
            ("The mediastinal contours are normal.", "The mediastinum is not widened."),
        ),
    ),
    (
        (
            _LUNGS,
            (
                "The lungs are clear.", "Both lungs are clear.", "No focal airspace opacity.",
                "The lungs are clear without focal consolidation.",
            ),
        ),
        (("Consolidation",), ("No focal consolidation.", "There is no consolidation.")),
    ),
    ((("Edema",), ("No pulmonary edema.", "There is no edema.")),),
    ((("Lung Lesion",), ("No pulmonary nodule.", "There is no suspicious nodule.")),),
    (
        (
            ("Pleural Effusion", "Pneumothorax"),
            (
                "No pleural effusion or pneumothorax.",
                "There is no pleural effusion or pneumothorax.",
                "No pneumothorax or pleural effusion is seen.",
                "No evidence of pneumothorax or pleural effusion.",
            ),
        ),
        (("Pneumothorax",), ("No pneumothorax.", "There is no pneumothorax.")),
        (("Pleural Effusion",), ("No pleural effusion.", "There is no pleural effusion.")),
    ),
    (
        (
            ("Fracture",),
            ("No acute fracture.", "The bones are intact.", "There is no rib fracture."),
        ),
    ),
)  # fmt: skip
_CLOSINGS_NORMAL = (
    "No acute cardiopulmonary abnormality.", "No acute cardiopulmonary process.",
    "Impression: no acute disease.",
)  # fmt: skip
_CLOSINGS = ("Clinical correlation is advised.", "Follow-up is advised.")
_CLOSED = 0.3
# Shares of the first wording, and of "small left effusion" over "small effusion on the left".
_USUAL, _SIDE_FIRST = 0.7, 0.75

# A report gets what is absent until it has this many words, if so much is absent.
_WORDS_LOW, _WORDS_HIGH = 14, 24


def write_report(findings: tuple[Finding, ...], rng: np.random.Generator) -> str:
  """A report of every finding, with its side, zone, severity and doubt, and of some absent ones."""
  present = {finding.label for finding in findings}
  if present.intersection(labels_lib.OPACITIES):
    present.add("Lung Opacity")
  return _compose(findings, set(labels_lib.CHEXPERT_14) - present, rng)


def report_from_labels(labels: np.ndarray, rng: np.random.Generator) -> str:
  """A report from int8 (14,) CheXpert labels alone, so without side, zone or severity.

  What is negative may be named as absent; what is unknown goes unmentioned. A Lung Opacity that a
  more exact finding implies is not said apart.
  """
  value = dict(zip(labels_lib.CHEXPERT_14, labels.tolist(), strict=True))
  implied = [value[name] for name in labels_lib.OPACITIES]
  findings = []
  for label, kind in _KIND_OF_LABEL.items():
    said = value[label] in (labels_lib.POSITIVE, labels_lib.UNCERTAIN)
    if said and not (label == "Lung Opacity" and value[label] in implied):
      findings.append(Finding(kind, hedged=value[label] == labels_lib.UNCERTAIN))
  absent = {name for name, v in value.items() if v == labels_lib.NEGATIVE}
  return _compose(tuple(findings), absent, rng)


_KIND_OF_LABEL = {label: kind for kind, label in KINDS.items()} | {"Support Devices": _ANY_DEVICE}


def _compose(findings: tuple[Finding, ...], absent: set[str], rng: np.random.Generator) -> str:
  in_order = sorted(findings, key=lambda finding: _ORDER.index(finding.kind))
  sentences = [_state(finding, rng) for finding in in_order]
  words = sum(_count_words(sentence) for sentence in sentences)
  enough = rng.integers(_WORDS_LOW, _WORDS_HIGH, endpoint=True)
  denials = [text for topic in _ABSENT if (text := _deny(topic, absent, rng))]
  kept = set()
  for index in rng.permutation(len(denials)):
    if words >= enough:
      break
    kept.add(index)
    words += _count_words(denials[index])
  sentences += [text for index, text in enumerate(denials) if index in kept]
  if rng.random() < _CLOSED or not sentences:
    devices = (*DEVICES, _ANY_DEVICE)
    normal = bool(absent) and all(finding.kind in devices for finding in findings)
    sentences.append(_pick(_CLOSINGS_NORMAL if normal else _CLOSINGS, rng))
  return " ".join(sentences)


def _state(finding: Finding, rng: np.random.Generator) -> str:
  """One sentence on a finding that is there."""
  if finding.hedged:
    frames: tuple[str, ...] = _HEDGED
  elif finding.kind in (*DEVICES, _ANY_DEVICE):
    frames = _IN_PLACE + _ALSO.get(finding.kind, ())
  else:
    frames = _CERTAIN + _ALSO.get(finding.kind, ())
  phrase = _name(finding, rng)
  article = "an" if phrase[0] in "aeiou" else "a"
  with_article = f"{article} {phrase}" if finding.kind in _COUNTED else phrase
  adverb = _ADVERBS[finding.severity]
  text = _pick(frames, rng).format(np=phrase, a_np=with_article, adverb=adverb)
  text = " ".join(text.split())
  return text[0].upper() + text[1:]


def _name(finding: Finding, rng: np.random.Generator) -> str:
  """The noun phrase, such as "small left pleural effusion" or "nodule in the right upper lobe"."""
  noun = _pick(_NOUNS[finding.kind], rng)
  degree = finding.severity
  if finding.kind in _BY_DEGREE:
    degree = _DEGREES.get(degree, "")
  before, after = finding.side, f"on the {finding.side}"
  if finding.zone:
    before = f"{finding.side} {_pick(_ZONES[finding.zone], rng)}"
    after = f"in the {before}"
  elif finding.kind == "atelectasis":
    before, after = f"{finding.side} basal", f"at the {finding.side} base"
  if not finding.side:
    words = [degree, noun]
  elif rng.random() < _SIDE_FIRST:
    words = [degree, before, noun]
  else:
    words = [degree, noun, after]
  return " ".join(word for word in words if word)


def _deny(topic, absent: set[str], rng: np.random.Generator) -> str:
  """One sentence on a topic's absent findings, or "" where one of them is not absent."""
  for names, wordings in topic:
    if absent.issuperset(names):
      return _pick(wordings, rng)
  return ""


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
  """The first of the options most of the time, else one of the others.

  A greedy reader of its own probabilities never says what it would say in five equally likely ways.
  """
  if len(options) == 1 or rng.random() < _USUAL:
    return options[0]
  return options[rng.integers(1, len(options))]


def _count_words(text: str) -> int:
  return len(text.split())
