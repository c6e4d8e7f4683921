"""Results of batches, kept beside their output until all of them are there."""

import io
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole

Rows = dict[str, np.ndarray]
"""Arrays by name: `error` has an entry a row, "" where it went well; others an entry for each of
those that did."""


class Journal:
  """What has been done of one request.

    OUTPUT.partial/          while it is under way: request.json, and NUMBER.npz of each batch
    OUTPUT.request.json      afterwards

  Attributes:
    is_finished: the same request has been finished before.
    done: rows of the batches that are there.
  """

  def __init__(
      self, output: pathlib.Path, request: dict[str, Any], targets: Sequence[pathlib.Path]
  ):
    """Of a request, a JSON-ready dict, whose results will be `targets`, all of them in the end.

    Raises UserError where `output` is or will be that of another request, or of none.
    """
    self._request = json.loads(json.dumps(request))
    self._folder = output.with_name(f"{output.name}.partial")
    self._stamp = output.with_name(f"{output.name}.request.json")
    self.is_finished = self._stamp.exists() and all(path.exists() for path in targets)
    if self.is_finished:
      self._compare(self._stamp, output)
    elif (self._folder / "request.json").exists():
      self._compare(self._folder / "request.json", output)
    else:
      is_full = output.is_dir() and any(output.iterdir())
      if there := [path for path in targets if path.exists()] or [output] * is_full:
        raise UserError(f"{there[0]} is there already; name another --output or delete it.")
    self.done = sum(len(batch["error"]) for batch in self._batches())

  def append(self, rows: Rows) -> None:
    """Keeps the rows of one batch."""
    if not self.done:
      self._folder.mkdir(parents=True, exist_ok=True)
      write_whole(self._folder / "request.json", json.dumps(self._request, indent=2))
    arrays = io.BytesIO()
    np.savez(arrays, allow_pickle=False, **rows)
    write_whole(self._folder / f"{self.done:09d}.npz", arrays.getvalue())
    self.done += len(rows["error"])

  def read(self) -> Rows:
    """All rows so far."""
    batches = self._batches()
    names = {name: None for batch in batches for name in batch}  # In the order of the batches.
    return {
        name: np.concatenate([batch[name] for batch in batches if name in batch]) for name in names
    }

  def finish(self) -> None:
    """Says that all targets are written."""
    write_whole(self._stamp, json.dumps(self._request, indent=2))
    shutil.rmtree(self._folder)

  def _batches(self) -> list[Rows]:
    paths = sorted(self._folder.glob("*.npz"))
    return [dict(np.load(path, allow_pickle=False)) for path in paths]

  def _compare(self, path: pathlib.Path, output: pathlib.Path) -> None:
    try:
      found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
      raise UserError(f"{path} is damaged; delete it and {output}.") from error
    differing = [
        key for key in self._request | found if found.get(key) != self._request.get(key)
    ]
    if differing:
      raise UserError(
          f"{output} holds predictions with another {', '.join(differing)}; name another --output"
          f" or delete that and {path}."
      )
