"""Made-up reports, cut to words by white space, with scores of them that others' packages gave."""

import numpy as np
import pytest

# Equal ones, repeated words, other order, other length, one word, and empty ones on either side.
_ONE_REFERENCE = [
    ("the heart is normal in size .", "the heart is normal in size ."),
    ("the lungs are clear clear clear clear", "the lungs are clear and the heart is not enlarged"),
    ("small left pleural effusion with basal atelectasis",
     "left basal atelectasis with a small pleural effusion"),
    ("no pneumothorax", "there is no pneumothorax or pleural effusion seen on this view"),
    ("there is no focal consolidation , and there is no large effusion on either side of the chest",
     "no focal consolidation or large effusion"),
    ("cardiomegaly", "cardiomegaly"),
    ("edema", "pneumonia"),
    ("", "the lungs are clear"),
    ("the lungs are clear", ""),
    ("", ""),
]  # fmt: skip
_SEVERAL_REFERENCES = [
    ("the lungs are clear .", ["the lungs are clear .", "clear lungs ."]),
    ("no acute findings in the chest",
     ["no acute cardiopulmonary findings", "the chest is normal",
      "no acute disease in the chest today"]),
    ("effusion effusion effusion", ["left effusion and right effusion", "effusion effusion"]),
    ("right lower lobe opacity", ["opacity in the right lower lobe", "consolidation", ""]),
    ("", ["", "normal chest"]),
    ("normal", ["normal", "normal chest", "unremarkable"]),
]  # fmt: skip


@pytest.fixture(scope="session")
def one_reference():
  """10 candidates, and a reference for each."""
  return tuple(map(list, zip(*_ONE_REFERENCE, strict=True)))


@pytest.fixture(scope="session")
def several_references():
  """6 candidates, and lists of references."""
  return tuple(map(list, zip(*_SEVERAL_REFERENCES, strict=True)))


@pytest.fixture(scope="session", params=[1, 2, 40], ids=lambda number: f"{number}_random_items")
def random_items(request):
  """Candidates and lists of 1 to 3 references, of 0 to 24 words out of 11."""
  rng = np.random.default_rng(request.param)
  words = ["the", "heart", "lungs", "are", "clear", "left", "small", "effusion", "no", "is", "."]

  def text():
    return " ".join(rng.choice(words, rng.integers(0, 25)))

  numbers = rng.integers(1, 4, request.param)
  return [text() for _ in numbers], [[text() for _ in range(number)] for number in numbers]


@pytest.fixture(scope="session")
def as_captions():
  """Makes of candidates and lists of references what pycocoevalcap takes."""

  def convert(candidates, references):
    return dict(enumerate(references)), {i: [text] for i, text in enumerate(candidates)}

  return convert
