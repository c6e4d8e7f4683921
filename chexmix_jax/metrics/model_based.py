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

Scorer = Callable[[Sequence[str], Sequence[str]], dict[str, np.ndarray]]
"""References and generated reports -> name -> score of each, (N,)."""


def _bert_score(references: Sequence[str], generated: Sequence[str]) -> dict[str, np.ndarray]:
  """BERTScore (Zhang et al. 2020) by roberta-large, without baseline scaling."""
  score = importlib.import_module("bert_score").score
  _, _, f1 = score(list(generated), list(references), lang="en", verbose=False)
  return {"bertscore_f1": np.asarray(f1)}


def _radgraph(references: Sequence[str], generated: Sequence[str]) -> dict[str, np.ndarray]:
  """RadGraph F1 (Delbrouck et al. 2022) by simple, partial and complete rewards."""
  scorer = importlib.import_module("radgraph").F1RadGraph(reward_level="all")
  _, rewards, _, _ = scorer(hyps=list(generated), refs=list(references))
  names = ("radgraph_simple", "radgraph_partial", "radgraph_complete")
  return {name: np.asarray(values) for name, values in zip(names, rewards, strict=True)}


def _ratescore(references: Sequence[str], generated: Sequence[str]) -> dict[str, np.ndarray]:
  """RaTEScore (Zhao et al. 2024)."""
  scorer = importlib.import_module("RaTEScore").RaTEScore()
  return {"ratescore": np.asarray(scorer.compute_score(list(generated), list(references)))}


def _green(references: Sequence[str], generated: Sequence[str]) -> dict[str, np.ndarray]:
  """GREEN (Ostmeier et al. 2024); the checkpoint is named by CHEXMIX_GREEN_MODEL."""
  model = os.environ["CHEXMIX_GREEN_MODEL"]
  scorer = importlib.import_module("green_score").GREEN(model, output_dir=".")
  _, _, scores, _, _ = scorer(list(references), list(generated))
  return {"green": np.asarray(scores)}


# Name: function, module, distribution, what to do where it is missing, a variable that it needs.
_SCORERS: dict[str, tuple[Scorer, str, str, str, str]] = {
    "BERTScore": (_bert_score, "bert_score", "bert-score", "pip install bert-score", ""),
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
  unavailable: dict[str, str] = {}
  for name, (scorer, module, distribution, mend, variable) in _SCORERS.items():
    if importlib.util.find_spec(module) is None or (variable and not os.environ.get(variable)):
      unavailable[name] = f"not computed: {mend}"
      continue
    try:
      scores = scorer(references, generated)
    except Exception as error:  # Whatever a package of others raises must not cost the rest.
      reason = str(error).strip().split("\n")[0]
      unavailable[name] = f"not computed: {module} failed ({type(error).__name__}: {reason})"
      continue
    version = importlib.metadata.version(distribution)
    for key, values_N in scores.items():
      figures[f"{key}/{distribution}={version}"] = bootstrap.mean(values_N)
  return figures, unavailable
