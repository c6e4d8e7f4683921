"""Studies of each split: their frontal pictures, and what the labels say of the findings.

Shape suffixes: N studies, P their pictures, F findings, T codes, X whatever follows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import tokens
from chexmix_jax.data.sources.source import VIEWS
from chexmix_jax.data.targets import FindingTargets, LabelConfig
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.evaluator import Context


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Studies of one split.

  Attributes:
    numbers: their places in it, (N,).
    lot: their places in a random order of it, (N,).
    codes: of their pictures, (P, T), those of a study together.
    starts: where the pictures of each study begin, (N,).
    targets_NF: NaN where a label does not count.
    patient_ids: N strings.
    study_ids: N strings.
  """

  numbers: np.ndarray
  lot: np.ndarray
  codes: np.ndarray
  starts: np.ndarray
  targets_NF: np.ndarray
  patient_ids: list[str]
  study_ids: list[str]

  def hidden_ids(self, context: Context, ratio: float) -> np.ndarray:
    """Token ids (P, T) with a share of each picture's codes masked.

    Study number i of every split is hidden in the same places, its pictures in different ones.
    """
    study_P = np.searchsorted(self.starts, np.arange(len(self.codes)), side="right") - 1
    later_P = np.arange(len(self.codes)) - self.starts[study_P]
    keys = (
        (self.numbers[study], *([later] if later else []))
        for study, later in zip(study_P, later_P, strict=True)
    )
    return context.hidden_ids(self.codes, ratio, keys)

  def highest(self, values_PX: np.ndarray) -> np.ndarray:
    """That of each study's pictures, (N, ...)."""
    return np.maximum.reduceat(values_PX, self.starts, axis=0)

  def mean(self, values_PX: np.ndarray) -> np.ndarray:
    """Over each study's pictures, (N, ...)."""
    counts_N = np.diff(self.starts, append=len(self.codes)).astype(values_PX.dtype)
    sums_NX = np.add.reduceat(values_PX, self.starts, axis=0)
    return sums_NX / counts_N.reshape(-1, *(1,) * (values_PX.ndim - 1))


def load_labelled(
    context: Context,
    findings: Sequence[str],
    policy: labels_lib.Policy,
    label_file: str,
    max_train: int,
    first_only: bool,
) -> dict[str, Labelled]:
  """Split -> its studies with pictures, of training, validation and the scored split.

  Training has at most `max_train` studies, drawn by lot, and one picture of each, as the others
  have with `first_only`. Labels are those of the records, or of `label_file` (see LabelConfig):
  its studies alone are taken then; a line says how many it does not have. Raises UserError where a
  split has no pictures, or no labels in the file.
  """
  targets = FindingTargets(findings, LabelConfig(policy, label_file))
  found = {}
  for name in ("train", "val", context.split):
    rows = list(tokens.open_tokens(context.tokens, name, need=("pictures",)))
    if not rows:
      raise UserError(f"No study of {name} in {context.tokens} has pictures; use other data.")
    lot = np.empty(len(rows), np.int64)
    lot[np.random.default_rng(context.seed).permutation(len(rows))] = np.arange(len(rows))
    numbers = np.arange(len(rows))
    if not targets.is_complete:
      numbers = np.array([i for i in numbers if targets.knows(rows[i])], np.int64)
      _say_unlabelled(name, len(rows), len(numbers), label_file)
    if name == "train":
      numbers = np.sort(numbers[np.argsort(lot[numbers])[:max_train]])
    kept = [rows[i] for i in numbers]
    first = first_only or name == "train"
    codes = [_frontal_codes(row)[: 1 if first else None] for row in kept]
    found[name] = Labelled(
        numbers,
        lot[numbers],
        np.concatenate(codes),
        np.cumsum([0, *map(len, codes[:-1])]),
        targets(kept),
        [row["patient_id"] for row in kept],
        [row["study_id"] for row in kept],
    )
  return found


def _say_unlabelled(split: str, count: int, labelled: int, label_file: str) -> None:
  if not labelled:
    raise UserError(
        f"{label_file} has none of the {count} studies of {split}; give the table of these studies,"
        " with the study_id of the records."
    )
  if labelled < count:
    print(
        f"classification: {count - labelled} of {count} studies of {split} are not in {label_file}"
        " and left out"
    )


def _frontal_codes(record: dict[str, Any]) -> np.ndarray:
  """Codes (pictures, T) of the frontal pictures, or of the first where no view is known as such."""
  is_frontal = record["views"] == VIEWS.index("frontal")
  return record["codes"][is_frontal] if is_frontal.any() else record["codes"][:1]
