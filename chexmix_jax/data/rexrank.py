"""The exchange format of ReXrank: a JSON object, case id -> entry."""

import json
import pathlib
from typing import Any

from chexmix_jax.errors import UserError


def read_cases(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Case id -> entry, in the order of the file; UserError for what is no such file, or empty."""
  try:
    cases = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}); name a ReXrank JSON.") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is no JSON ({error}); write it again.") from error
  is_object = isinstance(cases, dict) and cases
  if not is_object or not all(isinstance(case, dict) for case in cases.values()):
    raise UserError(f"{path} is no ReXrank JSON; give an object of case id -> entry.")
  return cases
