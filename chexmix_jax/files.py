"""Writing a file whole or not at all."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chexmix_jax.errors import UserError


def write_whole(path: pathlib.Path, content: bytes | str) -> None:
  """Writes `content` (text as UTF-8) to `path`, whose folder must be there, in one move."""
  partial = path.with_name(f".{path.name}.partial")
  partial.write_bytes(content.encode() if isinstance(content, str) else content)
  os.replace(partial, path)


def check_place(path: pathlib.Path) -> None:
  """UserError where no file can be written to `path`; asked before long work, not after it."""
  if path.is_dir():
    raise UserError(f"{path} is a folder; name a file in it.")
  if not os.access(path.parent, os.W_OK):
    raise UserError(f"{path.parent} is no folder that can be written to; make it or mend the path.")


def write_lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSON objects, one a line, whole or not at all."""
  write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def write_table(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes one row or more, of the same keys, as a CSV with a header, whole or not at all."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())
