"""Scores that other packages compute with models of their own, where they are installed.

None of them is a dependency. What is missing is said in one line, and never scored as zero.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence

import numpy as np

from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure

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


# Name: function, module, distribution, what to do where it is missing, a variable that it needs.
_SCORERS: dict[str, tuple[Scorer, str, str, str, str]] = {
    "BERTScore": (_bert_score, "bert_score", "bert-score", "pip install bert-score", ""),
    "CheXbert": (_chexbert, "f1chexbert", "f1chexbert", "pip install f1chexbert", ""),
    "RadGraph": (_radgraph, "radgraph", "radgraph", "pip install radgraph", ""),
    "RaTEScore": (_ratescore, "RaTEScore", "RaTEScore", "pip install RaTEScore", ""),
    "GREEN": (
        _green, "green_score", "green-score",
        "pip install green-score, and name its model by CHEXMIX_GREEN_MODEL", "CHEXMIX_GREEN_MODEL",
    ),
}  # fmt: skip


def model_based_figures(
    references: Sequence[str], generated: Sequence[str]
) -> tuple[dict[str, Figure], dict[str, str]]:
  """Figures of the scorers that are there, and name -> what to do about each of the others."""
  figures: dict[str, Figure] = {}
  # It is a regression over other scores of which no package gives one value for each report.
  unavailable = {"RadCliQ": "not computed: pip install RadEval, and score the file with it"}
  for name, (scorer, module, distribution, mend, variable) in _SCORERS.items():
    if importlib.util.find_spec(module) is None or (variable and not os.environ.get(variable)):
      unavailable[name] = f"not computed: {mend}"
      continue
    try:
      found = scorer(references, generated)
    except Exception as error:  # Whatever a package of others raises must not cost the rest.
      reason = str(error).strip().split("\n")[0]
      unavailable[name] = f"not computed: {module} failed ({type(error).__name__}: {reason})"
      continue
    version = importlib.metadata.version(distribution)
    figures |= {f"{key}/{distribution}={version}": figure for key, figure in found.items()}
  return figures, unavailable
