"""Progress bars with time left, on standard error."""

from collections.abc import Iterable
from typing import Any

import tqdm


def progress(iterable: Iterable | None = None, **kwargs: Any) -> tqdm.tqdm:
  """tqdm with the project's settings; `desc`, `total`, `unit` and `initial` as in tqdm.

  In a log file (no terminal) it writes a line every ten seconds instead of redrawing.
  """
  bar = tqdm.tqdm(iterable, dynamic_ncols=True, smoothing=0.1, disable=False, **kwargs)
  if not bar.fp.isatty():
    bar.mininterval = bar.maxinterval = 10.0
  return bar
