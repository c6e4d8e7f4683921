"""What is timed has a process of its own: its memory is its alone, and ends with it."""

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from chexmix_jax.errors import UserError

R = TypeVar("R")


class Process:
  """An object in another process. Leaving the context ends that."""

  def __init__(self, make: Callable[..., Any], *arguments: Any):
    """Waits until `make(*arguments)` has made the object there; all of them must be picklable."""
    context = multiprocessing.get_context("spawn")
    self._connection, other = context.Pipe()
    self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
    self._process.start()
    other.close()
    try:
      self._receive()
    except BaseException:
      self._end()
      raise

  def call(self, function: Callable[..., R], *arguments: Any) -> R:
    """What `function(object, *arguments)` gives there; a UserError there is one here."""
    self._connection.send((function, arguments))
    return self._receive()

  def _receive(self) -> Any:
    try:
      answer = self._connection.recv()
    except EOFError as error:
      self._process.join()
      raise UserError(
          f"A process of the benchmark ended with status {self._process.exitcode}; see what it"
          " wrote, or give it more memory where that is -9."
      ) from error
    if isinstance(answer, UserError):
      raise answer
    return answer

  def _end(self) -> None:
    self._process.kill()
    self._process.join()

  def __enter__(self) -> "Process":
    return self

  def __exit__(self, *_: object) -> None:
    self._end()


def peak_memory(_: object = None) -> int:
  """The most memory that this process has held, in bytes; also to be called in a Process."""
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
  try:
    made = make(*arguments)
    connection.send(None)
    while True:
      function, arguments = connection.recv()
      connection.send(function(made, *arguments))
  except UserError as error:
    connection.send(error)
