"""Waits until all processes have come, before jax does: its own wait cannot say who is late.

Process 0 listens at the coordinator's address until it has heard of all others; then the address is
free again for jax.
"""

import contextlib
import socket
import time

from chexmix_jax.errors import ProcessError, UserError

_GREETING = b"chexmix process "
_GO = b"go"
_PAUSE_S = 0.2


def call_roll(address: str, index: int, count: int, limit_s: float) -> None:
  """Returns when all `count` processes have called it; `address` is HOST:PORT of process 0.

  Raises ProcessError in all that have come where some have not within `limit_s` seconds, naming
  them, and UserError for a port that is taken.
  """
  host, _, port = address.rpartition(":")
  if index == 0:
    _listen(address, int(port), count, limit_s)
  else:
    _answer(address, (host.strip("[]"), int(port)), index, limit_s)


def _listen(address: str, port: int, count: int, limit_s: float) -> None:
  deadline = time.monotonic() + limit_s
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  with contextlib.ExitStack() as stack:
    present: dict[int, socket.socket] = {}
    try:
      server = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
      raise UserError(
          f"Process 0 cannot listen at port {port} ({error.strerror}); name a free port as"
          " coordinator."
      ) from error
    with server:
      while len(present) < count - 1 and time.monotonic() < deadline:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        with contextlib.suppress(OSError, ValueError):
          connection = stack.enter_context(server.accept()[0])
          connection.settimeout(5)
          greeting, number = connection.recv(64).rstrip().rsplit(b" ", 1)
          if greeting + b" " == _GREETING:
            present[int(number)] = connection
    late = [str(number) for number in range(1, count) if number not in present]
    sentence = (
        f"Process {', '.join(late)} of {count} did not come to {address} within {limit_s:.0f} s;"
        " see the log of it."
    )
    for connection in present.values():
      with contextlib.suppress(OSError):
        connection.sendall(_GREETING + (sentence.encode() if late else _GO))
    if late:
      raise ProcessError(sentence)


def _answer(address: str, place: tuple[str, int], index: int, limit_s: float) -> None:
  deadline = time.monotonic() + limit_s
  while True:
    said = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(place, timeout=5) as connection,
    ):
      connection.sendall(_GREETING + f"{index}\n".encode())
      connection.settimeout(limit_s + 5)  # Process 0 may have started just now.
      with connection.makefile("rb") as answer:
        said = answer.read()
    # Anything else comes from another program, or from a process 0 that was stopped.
    if said.startswith(_GREETING):
      if said == _GREETING + _GO:
        return
      raise ProcessError(said.removeprefix(_GREETING).decode())
    if time.monotonic() > deadline:
      raise ProcessError(
          f"Process 0 did not answer at {address} within {limit_s:.0f} s (this is process {index});"
          " see its log."
      )
    time.sleep(_PAUSE_S)
