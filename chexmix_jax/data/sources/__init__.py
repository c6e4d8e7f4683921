"""Where studies come from: generated ones and the sets people have on disk."""

import pathlib

from chexmix_jax.data.sources.source import Source
from chexmix_jax.errors import UserError

NAMES = ("phantom", "r2gen", "nih14", "openi")


def open_source(spec: str, seed: int = 0) -> Source:
  """The source that a text such as one of these names.

      phantom:2000                  generated studies, by number; `seed` picks which
      r2gen:PATH/annotation.json    R2Gen's annotation form
      nih14:DIR                     NIH ChestX-ray14
      openi:DIR                     OpenI / Indiana as on Kaggle

  Raises UserError for another name and for files that are not of the set's form.
  """
  # Here and not above: a worker process imports this package, and needs one reader only.
  from chexmix_jax.data.sources import nih14, openi, phantom, r2gen
  from chexmix_jax.labeler import label_report

  name, _, location = spec.partition(":")
  if name not in NAMES:
    raise UserError(f"{name!r} is not a source; use one of {', '.join(NAMES)}.")
  if name == "phantom":
    if not location.isdecimal() or int(location) == 0:
      raise UserError(f"{spec!r} needs a number of studies, as in phantom:2000.")
    return phantom.studies(int(location), seed)
  if not location:
    raise UserError(f"{spec!r} needs a path, as in {name}:PATH.")
  path = pathlib.Path(location)
  if not path.exists():
    raise UserError(f"{path} does not exist; give the path of the {name} data.")
  if name == "nih14":
    return nih14.studies(path)
  return openi.studies(path, label_report) if name == "openi" else r2gen.studies(path, label_report)
