import csv

import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.labeler import coded as coded_lib
from chexmix_jax.labeler.coded import NEAR, SAME, Score
from chexmix_jax.labeler.reader import find_mentions

_THEIRS = [column for columns in (SAME | NEAR).values() for column in columns]
# uid, codes, findings, impression, and which of their columns are 1.
_ROWS = (
    ("10", "Pulmonary Atelectasis/base/left", "Atelectasis or scar at the left base.", "",
     ("Atelectasis",)),
    ("11", "normal", "No effusion.", "Clear lungs.", ()),
    ("12", "Pleural Effusion/right;Pleural Effusion/left", "Small right effusion.", "",
     ("Effusion",)),
    ("13", "Opacity/lung", "Possible pneumonia.", "Edema.", ()),
    ("14", "Nodule/lung/upper lobe/right", "No mass.", "A clear chest.", ("Nodule",)),
)  # fmt: skip


@pytest.fixture
def tables(tmp_path):
  reports, labels = tmp_path / "reports.csv", tmp_path / "labels.csv"
  with reports.open("w", newline="") as file:
    csv.writer(file).writerows(
        [("uid", "MeSH", "findings", "impression"), *(row[:4] for row in _ROWS)]
    )
  with labels.open("w", newline="") as file:
    rows = ([uid, *(int(c in true) for c in _THEIRS)] for uid, *_, true in _ROWS)
    csv.writer(file).writerows([("uid", *_THEIRS), *rows])
  return reports, labels


@pytest.fixture
def coded(tables):
  return coded_lib.read_coded(*tables, ("findings", "impression"))


def test_scores_are_ratios_of_counts():
  true_N, found_N = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
  score = coded_lib.score(true_N, found_N)
  assert score == Score(true=3, found=2, hits=1)
  assert (score.precision, score.recall, score.f1) == (0.5, 1 / 3, 0.4)
  assert Score(0, 0, 0).f1 == 0


@pytest.mark.parametrize(
    ("report", "readings"),
    [
        ("Pneumonia.", {"positive", "coded", "uncertain"}),
        ("Probable pneumonia.", {"coded", "uncertain"}),
        ("Pneumonia or scar.", {"coded", "uncertain"}),
        ("Possible pneumonia.", {"uncertain"}),
        ("No pneumonia.", set()),
    ],
)
def test_a_reading_says_which_doubts_count(report, readings):
  mentions = find_mentions(report)
  found = {r for r in coded_lib.READINGS if coded_lib.is_found(mentions, "Pneumonia", r)}
  assert found == readings


def test_counts_by_finding_and_by_half_of_the_uids(coded):
  scores = coded_lib.score_coded(coded, "coded")
  assert scores["Atelectasis"] == Score(1, 1, 1)
  assert scores["Edema"] == Score(0, 1, 0)
  assert scores["Lung Lesion"] == Score(1, 0, 0)
  assert coded_lib.score_coded(coded, "positive")["Atelectasis"] == Score(1, 0, 0)
  assert coded_lib.score_coded(coded, "coded", 0)["Edema"] == Score(0, 0, 0)
  # Of atelectasis and effusion, which some report has; lesions are named otherwise there.
  assert coded_lib.mean_f1(scores) == 1


def test_counts_places_where_the_codes_name_one(coded):
  assert coded_lib.score_places(coded, "side")["Atelectasis"] == (1, 1)
  assert coded_lib.score_places(coded, "zone")["Atelectasis"] == (1, 1)
  # Coded on both sides, found on one.
  assert coded_lib.score_places(coded, "side")["Pleural Effusion"] == (0, 1)


def test_lists_every_disagreement_with_its_sentences(coded):
  assert coded_lib.list_errors(coded, "coded") == [
      ("13", "Edema", "false positive", "edema"),
      ("14", "Lung Lesion", "false negative, negative", "no mass"),
  ]


def test_tables_must_belong_together(tables, tmp_path):
  reports, labels = tables
  with pytest.raises(UserError, match="no column 'finding'; did you mean 'findings'"):
    coded_lib.read_coded(reports, labels, ("finding",))
  labels.write_text(labels.read_text().replace("\n1", "\n9"))
  with pytest.raises(UserError, match="no uid in common"):
    coded_lib.read_coded(reports, labels, ("findings",))


# Least F1 of the reading "coded" on Open-i; docs/labeler.md has the figures and what is wrong.
_OPENI = {
    "Atelectasis": 0.96, "Cardiomegaly": 0.96, "Consolidation": 0.95, "Edema": 0.89,
    "Pleural Effusion": 0.95, "Pneumonia": 0.79, "Pneumothorax": 0.94, "Lung Lesion": 0.75,
    "Pleural Other": 0.78,
}  # fmt: skip


def test_agrees_with_people_on_real_reports(shared):
  folder = shared / "data" / "openi"
  coded = coded_lib.read_coded(
      folder / "indiana_reports.csv", folder / "negbio_labels.csv", ("findings", "impression")
  )
  assert len(coded.uids) == 3258
  scores = coded_lib.score_coded(coded, "coded")
  for name, least in _OPENI.items():
    assert scores[name].f1 >= least, f"{name}: {scores[name]}"
  # Over the findings that both schemes name, and on the half that no rule was fitted to.
  assert coded_lib.mean_f1(scores) >= 0.93
  assert coded_lib.mean_f1(coded_lib.score_coded(coded, "coded", 1)) >= 0.91
  places = {kind: coded_lib.score_places(coded, kind).values() for kind in ("side", "zone")}
  for kind, counts in places.items():
    right, count = np.sum(list(counts), axis=0)
    assert count > 300 and right / count >= 0.97, kind
