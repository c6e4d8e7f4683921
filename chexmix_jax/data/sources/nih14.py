"""NIH ChestX-ray14 (Wang et al. 2017): images and finding names; reports made from the labels."""

import functools
import pathlib

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import images
from chexmix_jax.data.sources import source
from chexmix_jax.errors import UserError
from chexmix_jax.phantom import grammar

_VAL_FRACTION = 0.1
_IMAGE, _FINDINGS, _PATIENT = "Image Index", "Finding Labels", "Patient ID"


def studies(data_dir: pathlib.Path) -> source.Source:
  """Every image of `Data_Entry_2017*.csv`, one study each.

  `test_list.txt` is the test split; of the patients in `train_val_list.txt` a tenth, picked by a
  hash of the id, is the validation split. The set has no reports: the phantom grammar writes one
  from the labels, seeded by the image's name.

  Raises UserError for a missing file, an image without a split or one that is not on disk.
  """
  tables = sorted(data_dir.glob("Data_Entry_2017*.csv"))
  if not tables:
    raise UserError(f"{data_dir} has no Data_Entry_2017*.csv; give the NIH ChestX-ray14 folder.")
  table = tables[0]
  train_val, test = (
      frozenset(source.read_text(data_dir / name).split())
      for name in ("train_val_list.txt", "test_list.txt")
  )
  # One folder `images`, or the twelve folders `images_001/images` .. of the full download.
  paths = {path.name: path for path in data_dir.glob("images*/**/*.*")}
  found = []
  rows = source.read_table(table, (_IMAGE, _FINDINGS, _PATIENT))
  for number, row in enumerate(rows, start=2):
    name, patient_id = row[_IMAGE], row[_PATIENT]
    where = f"{table} row {number}"
    if name in test:
      split = "test"
    elif name in train_val:
      split = "val" if source.hash_fraction(f"nih14:{patient_id}") < _VAL_FRACTION else "train"
    else:
      raise UserError(f"{where} is in neither train_val_list.txt nor test_list.txt; add it to one.")
    if name not in paths:
      raise UserError(f"{where}: there is no {name} under {data_dir}/images; fetch the file.")
    content = functools.partial(_content, paths[name], tuple(row[_FINDINGS].split("|")), where)
    found.append(source.Study(name.rsplit(".", 1)[0], patient_id, split, where, content))
  if not found:
    raise UserError(f"{table} has no rows; give the set's own table.")
  description = {"source": "nih14", "table_sha256": source.file_sha256(table)}
  return source.Source(description, tuple(found))


def _content(
    path: pathlib.Path, names: tuple[str, ...], where: str, size: int
) -> source.StudyContent:
  try:
    labels = labels_lib.from_nih14(names)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
  report = grammar.report_from_labels(
      labels, np.random.default_rng(source.stable_seed(f"nih14:{path.name}"))
  )
  return source.StudyContent(images.grey(images.read_image(path, size)), report, labels)
