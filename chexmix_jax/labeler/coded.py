"""The labeler against codes that people gave to reports, as in the NegBio labels of Open-i."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.labeler.mention import Mention
from chexmix_jax.labeler.reader import find_mentions, split_sentences
from chexmix_jax.labeler.table import join_cells, read_rows
from chexmix_jax.labels import POSITIVE, UNCERTAIN

SAME = {
    "Atelectasis": ("Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Consolidation": ("Consolidation",),
    "Edema": ("Edema",),
    "Pleural Effusion": ("Effusion",),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax",),
}
"""Findings that both schemes name: ours, and the columns of the labels."""

NEAR = {"Lung Lesion": ("Mass", "Nodule"), "Pleural Other": ("Pleural_Thickening",)}
"""Findings of which both schemes have a part; outside of the mean."""

READINGS: dict[str, tuple[str, ...]] = {
    "positive": (),
    "coded": ("probable", "alternative", "borderline"),
    "uncertain": ("possible", "probable", "alternative", "borderline", "sign"),
}
"""Name -> the doubts of a mention that counts as positive all the same.

People who code reports for a search code what a report commits itself to: "probable X", "X or Y"
and "borderline X", but no "possible X".
"""


@dataclasses.dataclass(frozen=True)
class Score:
  """Counts of one finding: reports that have it, where it was found, and both."""

  true: int
  found: int
  hits: int

  @property
  def precision(self) -> float:
    return self.hits / self.found if self.found else 0.0

  @property
  def recall(self) -> float:
    return self.hits / self.true if self.true else 0.0

  @property
  def f1(self) -> float:
    """2 hits / (true + found), 0 where there is none of either."""
    return 2 * self.hits / (self.true + self.found) if self.true + self.found else 0.0


def score(true_N: np.ndarray, found_N: np.ndarray) -> Score:
  """Of two bool arrays (N,) over the same reports."""
  return Score(int(true_N.sum()), int(found_N.sum()), int((true_N & found_N).sum()))


def is_found(mentions: Iterable[Mention], finding: str, reading: str) -> bool:
  """Whether a report's mentions make a finding positive under one of READINGS."""
  doubts = READINGS[reading]
  return any(
      mention.value == POSITIVE or (mention.value == UNCERTAIN and mention.doubt in doubts)
      for mention in mentions
      if mention.finding == finding
  )


@dataclasses.dataclass(frozen=True)
class Coded:
  """Reports with codes that people gave, by `uid`; N reports.

  Attributes:
    uids: of the reports that both tables have.
    reports: their texts.
    mentions: of each.
    true: finding of SAME and NEAR -> bool (N,).
    codes: the reports' MeSH codes ("Pleural Effusion/right"), or "".
  """

  uids: list[str]
  reports: list[str]
  mentions: list[tuple[Mention, ...]]
  true: dict[str, np.ndarray]
  codes: list[str]


def read_coded(reports: pathlib.Path, labels: pathlib.Path, columns: Sequence[str]) -> Coded:
  """Reads both tables; UserError for one that does not fit."""
  counterparts = SAME | NEAR
  of_labels = read_rows(labels, ["uid", *(c for names in counterparts.values() for c in names)])
  next(of_labels)
  coded = {row["uid"]: row for row in of_labels}
  of_reports = read_rows(reports, ["uid", *columns])
  next(of_reports)
  rows = [row for row in of_reports if row["uid"] in coded]
  if not rows:
    raise UserError(f"{reports} and {labels} have no uid in common; give tables of one set.")
  uids, texts = [row["uid"] for row in rows], [join_cells(row, columns) for row in rows]
  true = {
      name: np.array([any(coded[uid][column] == "1" for column in theirs) for uid in uids])
      for name, theirs in counterparts.items()
  }
  mentions = [find_mentions(text) for text in texts]
  return Coded(uids, texts, mentions, true, [row.get("MeSH", "") for row in rows])


def score_coded(coded: Coded, reading: str, parity: int | None = None) -> dict[str, Score]:
  """Finding -> score; of even (0) or odd (1) uids alone with `parity`."""
  kept = [parity is None or _number(uid) % 2 == parity for uid in coded.uids]
  scores = {}
  for name, true_N in coded.true.items():
    found_N = np.array([is_found(mentions, name, reading) for mentions in coded.mentions])
    scores[name] = score(true_N[kept], found_N[kept])
  return scores


def mean_f1(scores: dict[str, Score]) -> float:
  """Mean over the findings that both schemes name, of those that some report has; else 0."""
  values = [scores[name].f1 for name in SAME if scores[name].true]
  return sum(values) / max(len(values), 1)


def _number(uid: str) -> int:
  return int("".join(c for c in uid if c.isdigit()) or 0)


_MESH = {
    "Atelectasis": ("Pulmonary Atelectasis",),
    "Consolidation": ("Consolidation",),
    "Pleural Effusion": ("Pleural Effusion",),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax",),
    "Lung Lesion": ("Nodule", "Mass"),
    "Pleural Other": ("Thickening",),
}
_MESH_PLACES = {
    "side": {"left": "left", "right": "right", "bilateral": "bilateral", "lingula": "left"},
    "zone": {
        "upper lobe": "upper", "apex": "upper", "middle lobe": "mid", "lingula": "mid",
        "lower lobe": "lower", "base": "lower",
    },
}  # fmt: skip


def score_places(coded: Coded, kind: str) -> dict[str, tuple[int, int]]:
  """Finding -> (agreeing, all) sides or zones, `kind`, of what is found and has one MeSH place.

  Counted are reports whose codes of a finding name one place and where the labeler found it
  (reading "coded") with a place; several places that it names count as bilateral, or as no zone.
  """
  places = {}
  for name, heads in _MESH.items():
    right = count = 0
    for codes, mentions in zip(coded.codes, coded.mentions, strict=True):
      theirs = _coded_places(codes, heads, _MESH_PLACES[kind])
      doubts = ("", *READINGS["coded"])
      ours = {
          getattr(m, kind)
          for m in mentions
          if m.finding == name and m.value in (POSITIVE, UNCERTAIN) and m.doubt in doubts
      } - {""}
      if kind == "side" and len(ours) > 1:
        ours = {"bilateral"}
      if len(theirs) == 1 and ours:
        count += 1
        right += ours == theirs
    places[name] = (right, count)
  return places


def _coded_places(codes: str, heads: Sequence[str], places: dict[str, str]) -> set[str]:
  found = set()
  for code in codes.split(";"):
    head, *parts = (part.strip() for part in code.split("/"))
    if head in heads:
      found |= {places[part] for part in parts if part in places}
  # Left in one code and right in another.
  return {"bilateral"} if found == {"left", "right"} else found


def list_errors(coded: Coded, reading: str) -> list[tuple[str, str, str, str]]:
  """(uid, finding, kind, text) of every disagreement.

  The kind is "false positive", "false negative, uncertain", "… negative" or "… not mentioned" by
  what the labeler says; the text has the sentences that speak of the finding, else the report.
  """
  errors = []
  for name, true_N in coded.true.items():
    for uid, report, mentions, true in zip(
        coded.uids, coded.reports, coded.mentions, true_N, strict=True
    ):
      if is_found(mentions, name, reading) == true:
        continue
      values = {mention.value for mention in mentions if mention.finding == name}
      said = "uncertain" if UNCERTAIN in values else "negative" if values else "not mentioned"
      kind = f"false negative, {said}" if true else "false positive"
      sentences = [
          text
          for text in split_sentences(report)
          if any(mention.finding == name for mention in find_mentions(text))
      ]
      errors.append((uid, name, kind, " | ".join(sentences) or report))
  return errors
