"""Scores that other packages compute with models or programs of their own, where they are there.

None of them is a dependency. What is missing is said in one line, and never scored as zero.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.metrics.words import cut

Scorer = Callable[[Sequence[str], Sequence[str]], dict[str, Figure]]
"""References and generated reports -> name -> figure."""


def _bert_score(references: Sequence[str], generated: Sequence[str]) -> dict[str, Figure]:
  """BERTScore (Zhang et al. 2020) by roberta-large, without baseline scaling."""
  score = importlib.import_module("bert_score").score
  _, _, f1 = score(list(generated), list(references), lang="en", verbose=False)
  return {"bertscore_f1": bootstrap.mean(np.asarray(f1))}


def _chexbert(references: Sequence[str], generated: Sequence[str]) -> dict[str, Figure]:
  """F1 of the labels that CheXbert (Smit et al. 2020) reads, micro over its 14."""
  scorer = importlib.import_module("f1chexbert").F1CheXbert()
  true_NF, predicted_NF = (
      np.array([scorer.get_label(text) for text in texts]) > 0 for texts in (references, generated)
  )
  twice_hits_N = 2 * (true_NF & predicted_NF).sum(1)
  return {"chexbert_f1_micro": bootstrap.ratio(twice_hits_N, true_NF.sum(1) + predicted_NF.sum(1))}


def _radgraph(references: Sequence[str], generated: Sequence[str]) -> dict[str, Figure]:
  """RadGraph F1 (Delbrouck et al. 2022) by simple, partial and complete rewards."""
  scorer = importlib.import_module("radgraph").F1RadGraph(reward_level="all")
  _, rewards, _, _ = scorer(hyps=list(generated), refs=list(references))
  names = ("radgraph_simple", "radgraph_partial", "radgraph_complete")
  return {
      name: bootstrap.mean(np.asarray(values)) for name, values in zip(names, rewards, strict=True)
  }


def _ratescore(references: Sequence[str], generated: Sequence[str]) -> dict[str, Figure]:
  """RaTEScore (Zhao et al. 2024)."""
  scorer = importlib.import_module("RaTEScore").RaTEScore()
  scores = scorer.compute_score(list(generated), list(references))
  return {"ratescore": bootstrap.mean(np.asarray(scores))}


def _green(references: Sequence[str], generated: Sequence[str]) -> dict[str, Figure]:
  """GREEN (Ostmeier et al. 2024); the checkpoint is named by CHEXMIX_GREEN_MODEL."""
  model = os.environ["CHEXMIX_GREEN_MODEL"]
  scorer = importlib.import_module("green_score").GREEN(model, output_dir=".")
  _, _, scores, _, _ = scorer(list(references), list(generated))
  return {"green": bootstrap.mean(np.asarray(scores))}


def _meteor(references: Sequence[str], generated: Sequence[str]) -> dict[str, Figure]:
  """METEOR 1.5 (Denkowski & Lavie 2014) of words cut as for BLEU: the mean over reports.

  That is not the score of the corpus, which the package computes from sums of the reports' counts
  and which others publish. A report without words scores 0.
  """
  scorer = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
  true, made = (
      {i: [" ".join(cut(text))] for i, text in enumerate(texts)}
      for texts in (references, generated)
  )
  try:
    _, scores = scorer.compute_score(true, made)
  finally:
    # It keeps its lock where Java ends too soon, and then would wait for that lock forever.
    if scorer.lock.locked():
      scorer.lock.release()
  return {"meteor_mean": bootstrap.mean(np.asarray(scores))}


def _radcliq(references: Sequence[str], generated: Sequence[str]) -> dict[str, Figure]:
  """RadCliQ-v1 (Yu et al. 2023), errors that a radiologist would count: lower is better.

  The mean over reports; the figure that RadEval itself gives of several is 1 over it. The word
  frequencies in its BERTScore are those of all references, in samples too.
  """
  with warnings.catch_warnings():  # It silences those of the whole process.
    scorer = importlib.import_module("radeval").RadEval(
        metrics=["radcliq"], per_sample=True, show_progress=False
    )
    scores = scorer(refs=list(references), hyps=list(generated))["radcliq_v1"]
  return {"radcliq_v1": bootstrap.mean(np.asarray(scores))}


@dataclasses.dataclass(frozen=True)
class _Package:
  """What computes a score, and what it needs.

  Attributes:
    scorer: that computes it.
    module: of the package.
    distribution: of the module.
    mend: what to do where something is missing.
    variable: of the environment that must be set, if any.
    program: that must be on the PATH, if any.
  """

  scorer: Scorer
  module: str
  distribution: str
  mend: str
  variable: str = ""
  program: str = ""

  @property
  def is_there(self) -> bool:
    return (
        importlib.util.find_spec(self.module) is not None
        and (not self.variable or bool(os.environ.get(self.variable)))
        and (not self.program or shutil.which(self.program) is not None)
    )


_PACKAGES = {
    "METEOR": _Package(
        _meteor, "pycocoevalcap", "pycocoevalcap", "pip install pycocoevalcap, and install Java",
        program="java",
    ),
    "BERTScore": _Package(_bert_score, "bert_score", "bert-score", "pip install bert-score"),
    "CheXbert": _Package(_chexbert, "f1chexbert", "f1chexbert", "pip install f1chexbert"),
    "RadGraph": _Package(_radgraph, "radgraph", "radgraph", "pip install radgraph"),
    "RadCliQ": _Package(_radcliq, "radeval", "radeval", "pip install radeval"),
    "RaTEScore": _Package(_ratescore, "RaTEScore", "RaTEScore", "pip install RaTEScore"),
    "GREEN": _Package(
        _green, "green_score", "green-score",
        "pip install green-score, and name its model by CHEXMIX_GREEN_MODEL",
        variable="CHEXMIX_GREEN_MODEL",
    ),
}  # fmt: skip


def model_based_figures(
    references: Sequence[str], generated: Sequence[str]
) -> tuple[dict[str, Figure], dict[str, str]]:
  """Figures of the packages that are there, and name -> what to do about each of the others."""
  figures: dict[str, Figure] = {}
  unavailable: dict[str, str] = {}
  for name, package in _PACKAGES.items():
    if not package.is_there:
      unavailable[name] = f"not computed: {package.mend}"
      continue
    try:
      found = package.scorer(references, generated)
      for figure in found.values():  # One that is not of as many reports raises here.
        figure(np.ones((1, len(references))))
      version = importlib.metadata.version(package.distribution)
    except Exception as error:  # Whatever a package of others raises must not cost the rest.
      reason = str(error).strip().split("\n")[0]
      unavailable[name] = (
          f"not computed: {package.module} failed ({type(error).__name__}: {reason})"
      )
      continue
    figures |= {f"{key}/{package.distribution}={version}": found[key] for key in found}
  return figures, unavailable
