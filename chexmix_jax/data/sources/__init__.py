"""Where studies come from: generated ones and the sets people have on disk."""

import importlib
import pathlib
from collections.abc import Mapping

from chexmix_jax.data.sources.source import Source
from chexmix_jax.errors import UserError

SETS = (
    "mimic_cxr", "chexpert", "chexpert_plus", "openi", "rexgradient", "padchest", "nih14", "vindr",
    "covid",
)  # fmt: skip
"""Sets that are a folder; each has a module of its name."""

NAMES = ("phantom", "r2gen", *SETS, "table")


def open_source(
    spec: str,
    seed: int = 0,
    image_root: pathlib.Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Source:
  """The source that a text such as one of these names.

      phantom:2000                  generated studies, by number; `seed` picks which
      phantom:2000:edema,effusion   the same with these findings only
      r2gen:PATH/annotation.json    R2Gen's annotation form
      table:PATH/list.csv           a CSV or JSON-lines file, with `columns`
      mimic_cxr:DIR, nih14:DIR, …   one of SETS

  `image_root` is the folder that all pictures must lie in, by default that of the set or the file.
  Raises UserError for another name and for files that are not of the set's form.
  """
  name, _, location = spec.partition(":")
  if name not in NAMES:
    raise UserError(f"{name!r} is not a source; use one of {', '.join(NAMES)}.")
  if (columns is not None) != (name == "table"):
    raise UserError("--columns belongs to --source=table, which needs it, and to nothing else.")
  # Here and not above: a worker process imports this package, and needs one reader only.
  reader = importlib.import_module(f"chexmix_jax.data.sources.{name}")
  if name == "phantom":
    number, _, kinds = location.partition(":")
    if not number.isdecimal() or int(number) == 0:
      raise UserError(f"{spec!r} needs a number of studies, as in phantom:2000.")
    limit = [[kind.strip() for kind in kinds.split(",")]] if kinds else []
    return reader.studies(int(number), seed, *limit)
  if not location:
    raise UserError(f"{spec!r} needs a path, as in {name}:PATH.")
  path = pathlib.Path(location)
  if not path.exists():
    raise UserError(f"{path} does not exist; give the path of the {name} data.")
  if (name in SETS) != path.is_dir():
    kind = "folder" if name in SETS else "file"
    raise UserError(f"{path} is not a {kind}; give the {kind} of the {name} data.")
  root = image_root or (path if path.is_dir() else path.parent)
  if name == "table":
    return reader.studies(path, root, dict(columns or {}))
  return reader.studies(path, root)
