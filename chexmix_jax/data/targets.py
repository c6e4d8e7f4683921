"""What a classifier is to say of a study: its labels, or those of a table beside the records."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.label_file import read_label_file
from chexmix_jax.data.records import Record
from chexmix_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LabelConfig:
  """Where labels come from.

  Attributes:
    policy: what an uncertain label counts as, see chexmix_jax.labels.
    file: a CSV whose labels count instead of those of the records, see label_file.py; "" for none.
  """

  policy: labels_lib.Policy = "mixed"
  file: str = ""


class FindingTargets:
  """Targets of the token records of any split; F findings.

  Raises UserError for a finding that records, or the file, do not have.
  """

  FIELDS = ("study_id", "labels")
  """What it reads of a record."""

  def __init__(self, findings: Sequence[str], config: LabelConfig):
    self._findings, self._config = tuple(findings), config
    self._table = read_label_file(pathlib.Path(config.file), findings) if config.file else None
    unknown = [name for name in findings if name not in labels_lib.INDEX]
    if self._table is None and unknown:
      known = ", ".join(labels_lib.CHEXPERT_14)
      raise UserError(f"findings holds {unknown[0]!r}; use some of {known}, or name a label file.")
    self._columns = [labels_lib.INDEX[name] for name in findings if self._table is None]

  @property
  def num_findings(self) -> int:
    """F."""
    return len(self._findings)

  @property
  def is_complete(self) -> bool:
    """Whether it has every study, as the records' own labels do."""
    return self._table is None

  def knows(self, record: Record) -> bool:
    """Whether the labels of this study are there."""
    return self._table is None or record["study_id"] in self._table

  def __call__(self, records: Sequence[Record]) -> np.ndarray:
    """float32 (N, F): 1, 0, and NaN for what does not count, of studies that it knows."""
    table = self._table
    labels_NF = np.stack([
        row["labels"][self._columns] if table is None else table[row["study_id"]] for row in records
    ])
    return labels_lib.apply_policy(labels_NF, self._config.policy, self._findings)
