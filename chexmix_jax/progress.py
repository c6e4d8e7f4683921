"""Progress bars with time left, on standard error."""

from collections.abc import Iterable
from typing import Any

import tqdm


def progress(
    iterable: Iterable | None = None, *, quiet: bool = False, **kwargs: Any
) -> tqdm.tqdm:
  """tqdm with the project's settings; `desc`, `total`, `unit` and `initial` as in tqdm.

  In a log file (no terminal) it writes a line every ten seconds instead of redrawing. `quiet` shows
  nothing: of many processes that do the same, one speaks.
  """
  bar = tqdm.tqdm(iterable, dynamic_ncols=True, smoothing=0.1, disable=quiet, **kwargs)
  if not quiet and not bar.fp.isatty():
    bar.mininterval = bar.maxinterval = 10.0
  return bar
