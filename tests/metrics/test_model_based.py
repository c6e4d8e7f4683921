"""Scores by packages of others: stand-ins for them, and METEOR itself where it is installed."""

import gc
import importlib.util
import shutil
import sys
import types
import warnings

import numpy as np
import pytest

from chexmix_jax.metrics import bootstrap, model_based
from chexmix_jax.metrics.model_based import model_based_figures

REFERENCES = ["The heart is normal, in size.", "Edema.", "The lungs are clear.", "No effusion."]
GENERATED = ["The heart is normal in size", "pneumonia", "", "No effusion"]


def value(figure, number=4):
  return figure(np.ones((1, number)))[0]


@pytest.fixture
def install(tmp_path, monkeypatch):
  """Puts a package with the given files and version where Python finds it, for one test."""

  def put(name, version, files):
    for path, content in files.items():
      (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name / path).write_text(content)
    info = tmp_path / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for module in [key for key in sys.modules if key.split(".")[0] == name]:
      monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / name

  before = set(sys.modules)
  yield put
  for module in set(sys.modules) - before:
    if module.split(".")[0] in ("pycocoevalcap", "radeval"):
      del sys.modules[module]


@pytest.fixture
def java(tmp_path, monkeypatch):
  program = tmp_path / "bin" / "java"
  program.parent.mkdir()
  program.write_text("#!/bin/sh\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", str(program.parent))
  return program


@pytest.fixture
def only(monkeypatch):
  """Leaves one score alone, so that no other package of this machine is asked."""

  def leave(name):
    packages = {name: model_based._PACKAGES[name]}
    monkeypatch.setattr(model_based, "_PACKAGES", packages)

  return leave


_METEOR = """
import threading

class Meteor:
  def __init__(self):
    self.lock = threading.Lock()

  def __del__(self):
    assert self.lock.acquire(timeout=0)

  def compute_score(self, references, generated):
    self.lock.acquire()
    assert list(references) == list(generated) == list(range(len(references)))
    pairs = [(*references[i], *generated[i]) for i in references]
    assert pairs[0] == ("the heart is normal in size", "the heart is normal in size"), pairs
    assert pairs[2] == ("the lungs are clear", ""), pairs
    scores = [float(a == b) for a, b in pairs]
    self.lock.release()
    return 0.123, scores
"""


def test_meteor_is_the_mean_over_reports_of_cut_words(install, java, only):
  only("METEOR")
  install("pycocoevalcap", "7.8", {"__init__.py": "", "meteor/meteor.py": _METEOR})
  figures, unavailable = model_based_figures(REFERENCES, GENERATED)
  assert "METEOR" not in unavailable
  assert value(figures["meteor_mean/pycocoevalcap=7.8"]) == pytest.approx(0.5)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_java_that_ends_too_soon_is_said_and_not_waited_for(install, java, only):
  only("METEOR")
  install("pycocoevalcap", "7.8", {"__init__.py": "", "meteor/meteor.py": _METEOR})
  figures, unavailable = model_based_figures(REFERENCES[::-1], GENERATED[::-1])
  gc.collect()
  assert not figures
  assert unavailable["METEOR"].startswith("not computed: pycocoevalcap failed (AssertionError")


def test_meteor_needs_java(install, java, only):
  only("METEOR")
  install("pycocoevalcap", "7.8", {"__init__.py": "", "meteor/meteor.py": _METEOR})
  java.unlink()
  figures, unavailable = model_based_figures(REFERENCES, GENERATED)
  assert unavailable["METEOR"] == "not computed: pip install pycocoevalcap, and install Java"
  assert not figures


def test_meteor_is_its_packages():
  """As installed; the words of the first test of BLEU, and scores of them by pycocoevalcap 1.2."""
  pytest.importorskip("pycocoevalcap")
  if shutil.which("java") is None:
    pytest.skip("Java is not there")
  references = [
      "The heart is normal in size.", "The lungs are clear, and the heart is not enlarged.",
      "Left basal atelectasis with a small pleural effusion", "Edema", "A 3.5 cm follow-up nodule!",
      "The lungs are clear", "",
  ]  # fmt: skip
  generated = [
      "the heart is normal in size", "the lungs are clear. Clear? Clear: clear",
      "small left pleural effusion with basal atelectasis", "pneumonia", "No nodule of 3.5 cm",
      "", "clear",
  ]  # fmt: skip
  (figure,) = model_based._meteor(references, generated).values()
  scores = [1, 0.24438544764, 0.420247527048, 0, 0.296724522362, 0, 0]
  np.testing.assert_allclose(figure(np.eye(7)), scores, atol=1e-9)


_RADEVAL = """
import warnings

class RadEval:
  def __init__(self, metrics, per_sample, show_progress):
    assert metrics == ["radcliq"] and per_sample and not show_progress
    warnings.filterwarnings("ignore")

  def __call__(self, refs, hyps):
    assert isinstance(refs, list) and isinstance(hyps, list)
    return {"radcliq_v1": [float(len(ref) - len(hyp)) for ref, hyp in zip(refs, hyps)][:NUMBER]}
"""


def test_radcliq_is_the_mean_over_reports(install, only):
  only("RadCliQ")
  install("radeval", "2.2.1", {"__init__.py": _RADEVAL.replace("NUMBER", "None")})
  filters = list(warnings.filters)
  figures, unavailable = model_based_figures(REFERENCES, GENERATED)
  expected = np.mean([len(a) - len(b) for a, b in zip(REFERENCES, GENERATED, strict=True)])
  assert value(figures["radcliq_v1/radeval=2.2.1"]) == pytest.approx(expected)
  assert "RadCliQ" not in unavailable and warnings.filters == filters


def test_a_package_that_misses_a_report_gives_no_figure(install, only):
  only("RadCliQ")
  install("radeval", "2.2.1", {"__init__.py": _RADEVAL.replace("NUMBER", "3")})
  figures, unavailable = model_based_figures(REFERENCES, GENERATED)
  assert not any("radcliq" in name for name in figures)
  assert unavailable["RadCliQ"].startswith("not computed: radeval failed (ValueError: ")


def test_scores_are_computed_or_said_to_be_missing(monkeypatch):
  def broken(references, generated):
    raise RuntimeError("no weights\nmore")

  def lengths(references, generated):
    return {"length": bootstrap.mean([len(text) for text in generated])}

  def package(scorer, mend="pip install numpy", **needs):
    return model_based._Package(scorer, "numpy", "numpy", mend, **needs)

  monkeypatch.setattr(
      model_based,
      "_PACKAGES",
      {
          "Lengths": package(lengths),
          "Broken": package(broken),
          "Unset": package(lengths, "name a model by X_MODEL", variable="X_MODEL"),
          "Absent": model_based._Package(lengths, "no_such_package", "x", "pip install x"),
          "Unlisted": model_based._Package(lengths, "json", "no-such-package", "pip install x"),
      },
  )
  figures, unavailable = model_based_figures(REFERENCES, GENERATED)
  (name,) = figures
  assert name == f"length/numpy={np.__version__}"
  assert value(figures[name]) == pytest.approx(np.mean([len(text) for text in GENERATED]))
  assert unavailable.pop("Unlisted").startswith("not computed: json failed (PackageNotFoundError")
  assert unavailable == {
      "Broken": "not computed: numpy failed (RuntimeError: no weights)",
      "Unset": "not computed: name a model by X_MODEL",
      "Absent": "not computed: pip install x",
  }


def test_every_score_that_lacks_its_package_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  figures, unavailable = model_based_figures(["Edema."], ["No edema."])
  names = {"METEOR", "BERTScore", "CheXbert", "RadGraph", "RadCliQ", "RaTEScore", "GREEN"}
  assert not figures and unavailable.keys() == names
  assert all(line.startswith("not computed: pip install ") for line in unavailable.values())


def test_labels_of_chexbert_are_compared_over_all_findings(monkeypatch):
  """By a stand-in for the package, which labels a text by the digits in it."""
  metrics = pytest.importorskip("sklearn.metrics")

  class F1CheXbert:
    def get_label(self, text):
      return [int(digit) for digit in text]

  stand_in = types.SimpleNamespace(F1CheXbert=F1CheXbert)
  monkeypatch.setitem(sys.modules, "f1chexbert", stand_in)
  rng = np.random.default_rng(0)
  true, predicted = (rng.random((2, 20, 14)) < 0.3).astype(int)
  texts = [["".join(map(str, row)) for row in labels] for labels in (true, predicted)]
  found = value(model_based._chexbert(*texts)["chexbert_f1_micro"], 20)
  assert found == pytest.approx(metrics.f1_score(true, predicted, average="micro"))
