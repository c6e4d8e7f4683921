"""Writing a file whole or not at all."""

import os
import pathlib


def write_whole(path: pathlib.Path, content: bytes | str) -> None:
  """Writes `content` (text as UTF-8) to `path`, whose folder must be there, in one move."""
  partial = path.with_name(f".{path.name}.partial")
  partial.write_bytes(content.encode() if isinstance(content, str) else content)
  os.replace(partial, path)
