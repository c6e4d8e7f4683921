"""NIH ChestX-ray14 (Wang et al. 2017): images and finding names; the set has no reports."""

import functools
import pathlib

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import UserError

_VAL_FRACTION = 0.1
_IMAGE, _FINDINGS, _PATIENT = "Image Index", "Finding Labels", "Patient ID"


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """Every image of `Data_Entry_2017*.csv`, one study each.

  `test_list.txt` is the test split; of the patients in `train_val_list.txt` a tenth, picked by a
  hash of the id, is the validation split. Images are found by name under `image_root/images*`.

  Raises UserError for a missing file or column; an image without a split or one that is not on disk
  is refused.
  """
  table = files.find_file(data_dir, "Data_Entry_2017*.csv", "NIH ChestX-ray14")
  train_val, test = (
      frozenset(files.read_text(data_dir / name).split())
      for name in ("train_val_list.txt", "test_list.txt")
  )
  # One folder `images`, or the twelve folders `images_001/images` .. of the full download.
  paths = {path.name: path for path in image_root.glob("images*/**/*.*")}
  parse = functools.partial(_parse, paths, train_val, test)
  rows = source.parse_rows(files.read_table(table, (_IMAGE, _FINDINGS, _PATIENT)), parse)
  description = {"source": "nih14", "table_sha256": files.file_sha256(table)}
  return source.gather(description, rows, merge=False)


def _parse(paths, train_val, test, where, row) -> source.Row:
  name, patient_id = (files.required(row, key, where) for key in (_IMAGE, _PATIENT))
  if name in test:
    split = "test"
  elif name in train_val:
    split = source.hash_split("nih14", patient_id, _VAL_FRACTION)
  else:
    raise source.BadRow(
        "no split", f"{where} is in neither train_val_list.txt nor test_list.txt; add it to one."
    )
  if name not in paths:
    raise source.BadRow("missing image", f"{where}: its image is not on disk; fetch the file.")
  try:
    labels = labels_lib.from_nih14(row[_FINDINGS].split("|"))
  except UserError as error:
    raise source.BadRow("label", f"{where}: {error}") from error
  number = row.get("Follow-up #", "")
  view = source.view_of(row.get("View Position") or "PA")
  return source.Row(
      study_id=name.rsplit(".", 1)[0],
      patient_id=patient_id,
      split=split,
      where=where,
      pictures=(source.picture_file(view, paths[name]),),
      labels=labels,
      order=int(number) if number.isdecimal() else None,
  )
