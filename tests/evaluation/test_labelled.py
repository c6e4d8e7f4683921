import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.evaluation import labelled
from chexmix_jax.evaluation.labelled import load_labelled


def two_studies(monkeypatch):
  """One of two frontal pictures and a lateral one, and one of unknown views."""
  row = {"patient_id": "p", "study_id": "s", "labels": np.zeros(14, np.int8)}
  codes = np.arange(16)[None]
  rows = [
      row | {"codes": np.concatenate([codes, codes + 1, codes + 2]), "views": np.array([0, 0, 1])},
      row | {"codes": np.concatenate([codes, codes + 3]), "views": np.array([2, 2])},
  ]
  monkeypatch.setattr(labelled.tokens, "open_tokens", lambda *_, **__: rows)


def test_frontal_pictures_of_a_study(context, monkeypatch):
  two_studies(monkeypatch)
  splits = load_labelled(context, labels_lib.CHEXPERT_5, "mixed", "", 600, False)
  assert splits["test"].codes[:, 0].tolist() == [0, 1, 0]
  assert splits["test"].starts.tolist() == [0, 2]
  assert len(splits["train"].codes) == 2  # Probes are fitted to one of each.
  first = load_labelled(context, labels_lib.CHEXPERT_5, "mixed", "", 600, True)
  assert len(first["test"].codes) == 2


def test_values_of_pictures_become_those_of_studies(context, monkeypatch):
  two_studies(monkeypatch)
  split = load_labelled(context, labels_lib.CHEXPERT_5, "mixed", "", 600, False)["test"]
  values = np.array([[1.0, 8.0], [3.0, 4.0], [5.0, 5.0]], np.float32)
  assert split.mean(values).tolist() == [[2, 6], [5, 5]] and split.mean(values).dtype == np.float32
  assert split.highest(values).tolist() == [[3, 8], [5, 5]]


def test_later_pictures_of_a_study_are_hidden_elsewhere(context, monkeypatch):
  two_studies(monkeypatch)
  split = load_labelled(context, labels_lib.CHEXPERT_5, "mixed", "", 600, False)["test"]
  hidden = split.hidden_ids(context, 0.5) == context.vocabulary.mask
  assert set(hidden.sum(1)) == {8} and np.any(hidden[0] != hidden[1])


def test_the_lot_draws_among_the_studies_with_labels(context, tmp_path):
  everything = load_labelled(context, ("Edema",), "mixed", "", 10**6, False)["train"]
  assert sorted(everything.lot) == list(range(90))
  path = tmp_path / "labels.csv"
  rows = [f"{study},1" for study in everything.study_ids[::2]]
  known = {"val": "s4", "test": "s8"}
  path.write_text("\n".join(["study_id,Edema", *rows, *(f"{s},0" for s in known.values())]))
  few = load_labelled(context, ("Edema",), "mixed", str(path), 20, False)["train"]
  assert len(few.numbers) == 20 and set(few.numbers) <= set(range(0, 90, 2))
  # The first of the lot, whichever have labels.
  order = everything.numbers[np.argsort(everything.lot)]
  assert set(few.numbers) == set([i for i in order if i % 2 == 0][:20])
