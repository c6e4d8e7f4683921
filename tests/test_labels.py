"""What labels say in words."""

import numpy as np
import pytest

from chexmix_jax.labeler import label_report
from chexmix_jax.labels import (
    CHEXPERT_14,
    INDEX,
    NEGATIVE,
    NOTHING_FOUND,
    PHRASES,
    POSITIVE,
    UNCERTAIN,
    UNKNOWN,
    describe_labels,
)


def labels_of(rest=UNKNOWN, **values):
  """Labels (14,), by names without their spaces; `rest` for those that are not named."""
  names = {name.replace(" ", ""): i for name, i in INDEX.items()}
  labels = np.full(len(CHEXPERT_14), rest, np.int8)
  for name, value in values.items():
    labels[names[name]] = value
  return labels


def test_phrases_are_of_every_finding_and_the_labeler_reads_them():
  assert set(PHRASES) == set(CHEXPERT_14) - {"No Finding"}
  for name, (present, absent) in PHRASES.items():
    assert label_report(present)[INDEX[name]] == POSITIVE, name
    assert label_report(absent)[INDEX[name]] != POSITIVE, name


def test_the_labeler_reads_each_finding_and_no_other_back():
  for name in PHRASES:
    labels = labels_of(NEGATIVE)
    labels[INDEX[name]] = POSITIVE
    read = {CHEXPERT_14[i] for i in np.flatnonzero(label_report(describe_labels(labels)) == 1)}
    # No Finding goes with devices, and a finding in the lung is an opacity.
    assert name in read and read <= {name, "Lung Opacity", "No Finding"}
    assert ("No Finding" in read) == (name == "Support Devices")
  assert label_report(NOTHING_FOUND)[INDEX["No Finding"]] == POSITIVE


def test_all_positive_findings_are_said_in_order_and_uncertain_ones_left_out():
  labels = labels_of(NEGATIVE, Fracture=POSITIVE, Edema=POSITIVE, Pneumonia=UNCERTAIN)
  assert describe_labels(labels) == "There is pulmonary edema. There is a fracture."


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (labels_of(NEGATIVE, NoFinding=POSITIVE), NOTHING_FOUND),
        (labels_of(NoFinding=POSITIVE), NOTHING_FOUND),
        (labels_of(Edema=NEGATIVE), NOTHING_FOUND),
        (labels_of(), ""),
        (labels_of(Edema=UNCERTAIN, Fracture=NEGATIVE), ""),
        # A finding that is none of the 14.
        (labels_of(NEGATIVE), ""),
    ],
)
def test_where_no_finding_is_positive(labels, text):
  assert describe_labels(labels) == text
