"""An ordered map over worker processes that holds only a few results at a time."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from chexmix_jax.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_CHUNK = 16
_CHUNKS_AHEAD = 4


def available_cpus() -> int:
  """CPU cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R], items: Sequence[T], workers: int
) -> Generator[R, None, None]:
  """`function` over `items`, in order, in `workers` processes (1: in this one).

  Function and items must be picklable, by names outside the main module. An exception of the
  function is raised here; UserError when a worker dies. Processes are spawned, not forked: jax may
  already run threads in this one.
  """
  if workers == 1 or len(items) <= _CHUNK:
    yield from map(function, items)
    return
  pool = concurrent.futures.ProcessPoolExecutor(
      workers, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupt
  )
  chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
  pending: collections.deque[concurrent.futures.Future] = collections.deque()
  try:
    for chunk in chunks:
      with _no_main_module():
        pending.append(pool.submit(_map_chunk, function, chunk))
      if len(pending) > workers * _CHUNKS_AHEAD:
        yield from pending.popleft().result()
    while pending:
      yield from pending.popleft().result()
  except concurrent.futures.BrokenExecutor as error:
    raise UserError(
        "A worker process was killed, most likely for lack of memory; use fewer --workers."
    ) from error
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
  """Keeps processes spawned meanwhile from importing the main module.

  That of quickstart imports jax and more, seconds a worker; what workers run is never there.
  """
  main = sys.modules["__main__"]
  sys.modules["__main__"] = types.ModuleType("__main__")
  try:
    yield
  finally:
    sys.modules["__main__"] = main


def _map_chunk(function: Callable[[T], R], chunk: Sequence[T]) -> list[R]:
  return [function(item) for item in chunk]


def _ignore_interrupt() -> None:
  # Ctrl-C reaches every process of the terminal; the parent alone answers it and stops the pool.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
