"""Scores of a file of reports, as the command prints and writes them."""

import json

import numpy as np
import pytest

from chexmix_jax import evaluate
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import score
from chexmix_jax.evaluation.score import score_file
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.reports import report_figures

CASES = {
    "a": ("There is a left pleural effusion.", "Effusion.", "There is a left pleural effusion."),
    "b": ("The heart is enlarged.", "Cardiomegaly.", "There is a pneumothorax."),
    "c": ("The lungs are clear.", "", ""),
    "d": ("", "Normal.", "The lungs are clear."),
}


@pytest.fixture(autouse=True)
def no_other_packages(monkeypatch):
  """Whatever is installed: METEOR alone takes half a minute to start."""
  monkeypatch.setattr(score, "model_based_figures", lambda references, generated: ({}, {}))


@pytest.fixture
def write(tmp_path):
  def write_entries(changes=None, **more):
    entries = {
        case: {
            "section_findings": findings, "section_impression": impression,
            "model_prediction": prediction, "image_path": [f"{case}.png"], **more,
        }
        for case, (findings, impression, prediction) in CASES.items()
    }  # fmt: skip
    path = tmp_path / "reports.json"
    path.write_text(json.dumps(entries | (changes or {})))
    return path

  return write_entries


def test_the_command_writes_what_the_library_computes(write, tmp_path, capsys):
  output = tmp_path / "scores.json"
  evaluate.main(["score", f"--input={write()}", f"--output={output}"])
  found = json.loads(output.read_text())
  figures = report_figures(
      [CASES[case][0] for case in "abc"], [CASES[case][2] for case in "abc"]
  )
  assert found["values"]["bleu_1"] == pytest.approx(figures["bleu_1"](np.ones((1, 3)))[0])
  assert found["values"]["finding_f1_micro"] == pytest.approx(0.5)
  assert found["left_out"] == ["d"] and found["empty"] == ["c"]
  assert found["cases"] == {
      "b": {"missed": ["Cardiomegaly"], "hallucinated": ["Pneumothorax"]}
  }
  low, high = found["intervals"]["exact_match"]
  assert low == 0 and high == 1
  assert "|cases:3|interval:95%,cases,1000|seed:0" in found["signature"]
  printed = capsys.readouterr().out
  assert found["signature"] in printed and "1 cases have no reference" in printed
  assert "1 predictions are empty" in printed
  assert "left pleural" not in printed  # No report text.


def test_other_sections_and_patients(write):
  found = score_file(write(patient_id="one"), ("impression",))
  assert found["left_out"] == ["c"] and "interval:95%,patients" in found["signature"]
  low, high = found["intervals"]["rouge_l"]
  assert low == high == found["values"]["rouge_l"]  # All of one patient.
  both = score_file(write(), ("findings", "impression"))
  assert both["left_out"] == [] and "|reference:findings+impression|" in both["signature"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no ReXrank JSON"),
        ("{", "is no JSON"),
        ('{"a": {"section_findings": "x"}}', "Entry 1 of .* has no text model_prediction"),
        ('{"a": {"model_prediction": "x"}}', "No entry of .* has section_findings"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
  path = tmp_path / "reports.json"
  path.write_text(content)
  with pytest.raises(UserError, match=message):
    score_file(path)
  with pytest.raises(UserError, match=r"nothing\.json cannot be read"):
    score_file(tmp_path / "nothing.json")
  with pytest.raises(UserError, match="'summary'; use some of findings, impression"):
    score_file(path, ("summary",))


def test_a_place_that_cannot_be_written_is_named_before_the_work(write, tmp_path, monkeypatch):
  monkeypatch.setattr(evaluate, "score_file", None)
  for output, message in ((tmp_path / "no" / "x.json", "no is no folder"), (tmp_path, "a folder")):
    with pytest.raises(UserError, match=message):
      evaluate.main(["score", f"--input={write()}", f"--output={output}"])


def test_scores_of_other_packages_stand_with_the_rest(write, monkeypatch):
  def figures(references, generated):
    assert (references, generated) == (
        [CASES[case][0] for case in "abc"], [CASES[case][2] for case in "abc"]
    )
    length = bootstrap.mean(np.array([len(text) for text in generated]))
    return {"length/package=1": length}, {"RadGraph": "not computed: pip install radgraph"}

  monkeypatch.setattr(score, "model_based_figures", figures)
  found = score_file(write())
  expected = sum(len(CASES[case][2]) for case in "abc") / 3
  assert found["values"]["length/package=1"] == pytest.approx(expected)
  assert len(found["intervals"]["length/package=1"]) == 2
  assert found["unavailable"] == {"RadGraph": "not computed: pip install radgraph"}
