import numpy as np
import pytest

from chexmix_jax.data import sources
from chexmix_jax.errors import UserError
from chexmix_jax.labels import INDEX
from chexmix_jax.phantom.findings import KINDS


def test_phantoms_by_number_and_seed():
  found = sources.open_source("phantom:40", seed=3)
  assert len(found.studies) == 40
  assert found.description != sources.open_source("phantom:40", seed=4).description


def test_phantoms_of_some_findings():
  plain = sources.open_source("phantom:40")
  every = sources.open_source(f"phantom:40:{','.join(KINDS)}")
  assert every.description == plain.description
  assert [s.labels.tolist() for s in every.studies] == [s.labels.tolist() for s in plain.studies]
  some = sources.open_source("phantom:40:effusion, central line")
  assert some.description["kinds"] == ["central line", "effusion"]
  allowed = [INDEX[name] for name in ("Pleural Effusion", "Support Devices", "No Finding")]
  rest = np.delete(np.stack([study.labels for study in some.studies]), allowed, axis=1)
  assert not rest.any()


def test_splits_of_phantoms_are_by_patient():
  found = sources.open_source("phantom:300").studies
  splits = {}
  for study in found:
    splits.setdefault(study.patient_id, set()).add(study.split)
  assert all(len(of_patient) == 1 for of_patient in splits.values())
  assert len(splits) < len(found)
  assert {study.split for study in found} == {"train", "val", "test"}


def test_real_sets_by_path(write_annotation):
  assert len(sources.open_source(f"r2gen:{write_annotation(4)}").studies) == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mimic:DIR", "use one of phantom, r2gen, mimic_cxr"),
        ("phantom:many", "needs a number"),
        ("phantom:0", "needs a number"),
        ("phantom:9:edema,heart", "'heart' is no finding of phantoms; use some of cardiomegaly"),
        ("nih14:", "needs a path"),
        ("openi:nowhere", "nowhere does not exist"),
        ("r2gen:.", "is not a file; give the file of the r2gen data"),
        ("openi:README.md", "README.md does not exist|is not a folder"),
        ("table:x.csv", "belongs to --source=table, which needs it"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(spec, message):
  with pytest.raises(UserError, match=message):
    sources.open_source(spec)
