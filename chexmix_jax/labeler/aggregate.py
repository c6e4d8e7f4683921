"""The 14 labels of a report from its mentions."""

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.labeler.reader import find_mentions
from chexmix_jax.labels import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN

_RANK = {UNKNOWN: 0, NEGATIVE: 1, UNCERTAIN: 2, POSITIVE: 3}


def label_report(report: str) -> np.ndarray:
  """int8 (14,): values of chexmix_jax.labels; UNKNOWN is what the report does not mention.

  Of several mentions positive wins over uncertain and uncertain over negative. A finding in the
  lung is a Lung Opacity too (the label hierarchy, not the CheXpert labeler's own habit). No Finding
  is positive where nothing but support devices is positive or uncertain, so for an empty text too.
  """
  labels = np.full(len(labels_lib.CHEXPERT_14), UNKNOWN, np.int8)

  def mark(name: str, value: int) -> None:
    index = labels_lib.INDEX[name]
    if _RANK[value] > _RANK[int(labels[index])]:
      labels[index] = value

  found = False
  for mention in find_mentions(report):
    mark(mention.finding, mention.value)
    if mention.value != NEGATIVE:
      found |= mention.finding != "Support Devices"
      if mention.finding in labels_lib.OPACITIES:
        mark("Lung Opacity", mention.value)
  if not found:
    labels[labels_lib.INDEX["No Finding"]] = POSITIVE
  return labels
