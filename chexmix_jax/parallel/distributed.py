"""Processes that train together: they start, wait for each other, and stop at the same step.

They agree by the key-value store of jax's coordination service, which needs no device.
"""

import atexit
import contextlib
import hashlib
import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jaxlib
import numpy as np
from jax._src import clusters
from jax._src import distributed as jax_distributed

import chexmix_jax
from chexmix_jax import config as config_lib
from chexmix_jax.errors import ProcessError, Stopped, UserError, exit_status
from chexmix_jax.parallel.roll_call import call_roll

TIME_LIMIT_S = 600.0
"""How long processes wait for one that is late."""

_STOP_LIMIT_S = 60.0
_LEAVE_LIMIT_S = 10.0
_POLL_S = 1.0
_LEFT = "chexmix/left"
_NOTICE = "chexmix/notice"


def initialize(
    coordinator: str | None = None, index: int | None = None, count: int | None = None
) -> None:
  """Makes this process one of `count`; call it before anything touches a device.

  `coordinator` is HOST:PORT of process 0. Without arguments jax finds out all three (TPU pod, GKE,
  SLURM, Open MPI). Raises UserError where it cannot, and ProcessError where some do not come within
  TIME_LIMIT_S.
  """
  # StopRequest does its work.
  jax.config.update("jax_enable_preemption_service", False)
  limit_s = int(TIME_LIMIT_S)
  try:
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, count, index, None, None, limit_s
    )
    address, number, place, local_devices = found
    if address and number and place is not None:
      call_roll(address, place, number, TIME_LIMIT_S)
    jax.distributed.initialize(
        address,
        number,
        place,
        local_devices,
        initialization_timeout=limit_s,
        shutdown_timeout_seconds=30,
    )
  except (ValueError, RuntimeError) as error:
    if coordinator:
      raise
    reason = str(error).strip().split("\n")[0]
    raise UserError(
        "--distributed finds no processes that were started together (SLURM, Open MPI, Kubernetes,"
        f" a TPU pod: {reason}); name --process_index and --process_count instead, for train with"
        " --coordinator."
    ) from error


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Runs a block as one of the processes that `initialize` joined, and takes leave of them.

  A process that an error ends says so to the others: those that wait for it raise ProcessError
  with its sentence. Alone it does nothing.
  """
  if not jax.distributed.is_initialized():
    yield
    return
  try:
    yield
    exchange("the end")
  except BaseException as error:
    others = _left()
    expected = (UserError, Stopped, KeyboardInterrupt, SystemExit)
    if others and not isinstance(error, expected):
      # What this process met in a step with another that has gone.
      ended = _ended(others)
      atexit.register(_exit, ended.status)
      raise ended from error
    _leave(error)
    raise
  jax.distributed.shutdown()


def _left() -> dict[int, str]:
  """What processes that ended have said, by their index."""
  client: Any = jax_distributed.global_state.client
  try:
    return {_index(key): value for key, value in client.key_value_dir_get(_LEFT)}
  except jax.errors.JaxRuntimeError:  # Process 0 has gone.
    return {}


def _ended(left: dict[int, str]) -> ProcessError:
  index = min(left)
  status, sentence = json.loads(left[index])
  return ProcessError(f"Process {index} ended: {sentence}", status)


def _leave(error: BaseException) -> None:
  """Tells the others why this process ends, and waits a moment for them to end too."""
  state: Any = jax_distributed.global_state
  status, sentence = exit_status(error), str(error).strip().split("\n")[0]
  if not isinstance(error, UserError):
    sentence = f"{type(error).__name__}: {sentence}"
  deadline = time.monotonic() + _LEAVE_LIMIT_S
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    state.client.key_value_set(f"{_LEFT}/{state.process_id}", json.dumps([status, sentence]))
    while time.monotonic() < deadline:
      if len(_left()) == state.num_processes:
        jax.distributed.shutdown()
        return
      time.sleep(0.1)
  # The others are in a step with this process, and end without taking leave; jax would wait for
  # them at exit.
  atexit.register(_exit, status)


def _exit(status: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def exchange(name: str, value: Any = None, limit_s: float | None = None) -> list[Any]:
  """The values (for JSON) of all processes, by their index; waits until every process has come.

  A name serves once. Raises ProcessError that names the processes that are late by `limit_s`
  (TIME_LIMIT_S by default), or one that has ended.
  """
  state = jax_distributed.global_state
  if state.client is None:
    return [value]
  limit_s = TIME_LIMIT_S if limit_s is None else limit_s
  folder = f"chexmix/exchange/{name}"
  state.client.key_value_set(f"{folder}/{state.process_id}", json.dumps(value))
  deadline, pause = time.monotonic() + limit_s, 0.02
  while True:
    values = {_index(key): there for key, there in state.client.key_value_dir_get(folder)}
    if len(values) == state.num_processes:
      return [json.loads(values[i]) for i in range(state.num_processes)]
    if left := {i: why for i, why in _left().items() if i not in values}:
      raise _ended(left)
    if time.monotonic() > deadline:
      late = [str(i) for i in range(state.num_processes) if i not in values]
      raise ProcessError(
          f"Process {', '.join(late)} of {state.num_processes} did not come to {name} within"
          f" {limit_s:.0f} s; see the log of it."
      )
    time.sleep(pause)
    pause = min(1.5 * pause, _POLL_S)


def _index(key: str) -> int:
  return int(key.rpartition("/")[2])


def check_same(values: dict[str, Any]) -> None:
  """Raises UserError on all processes where one differs from process 0.

  Compared are `values` (nested dicts for JSON), the package's code, and the versions of jax and
  jaxlib; the sentence names the process and what differs.
  """
  values = {**values, "code": _hash_code(), "jax": jax.__version__, "jaxlib": jaxlib.__version__}
  values = json.loads(json.dumps(values))
  is_first = jax_distributed.global_state.process_id == 0
  first = exchange("the start", values if is_first else None)[0]
  differing = exchange("the comparison", config_lib.differing(values, first))
  parts = [
      f"process {index} differs from process 0 in {', '.join(names[:5])}"
      for index, names in enumerate(differing)
      if names
  ]
  if parts:
    sentence = "; ".join(parts[:3])
    raise UserError(
        f"{sentence[0].upper()}{sentence[1:]}: start all processes with the same command, code and"
        " versions."
    )


def _hash_code() -> str:
  """Of the package's Python files."""
  root = pathlib.Path(chexmix_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
  return digest.hexdigest()


class StopRequest:
  """SIGTERM in a with-block: a request to stop, at one step for all processes.

  The signal is only noted, however often it comes. With several processes a thread of each asks
  once a second whether any has got it; then each says which step it has begun, and all stop before
  the one after the latest of these. No step waits for another process. Where one has ended with an
  error, and this one does not come to know of it, in a step with it, the thread ends this one too.

  jax's multihost_utils.reached_preemption_sync_point has the same protocol. But Orbax calls it too,
  in the background and with the step it has saved, which jax then takes for the step at hand.
  """

  def __init__(self) -> None:
    self._noticed = False
    self._closed = threading.Event()
    self._lock = threading.Lock()
    self._step = -1
    self._stop_at: int | None = None

  def __enter__(self) -> "StopRequest":
    self._previous = signal.signal(signal.SIGTERM, self._note)
    if jax.distributed.is_initialized():
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self._closed.set()
    signal.signal(signal.SIGTERM, self._previous)

  def _note(self, *_: object) -> None:
    self._noticed = True

  def reached(self, step: int) -> bool:
    """Whether to stop now that `step` steps are done; ask before every step, rising."""
    if not jax.distributed.is_initialized():
      return self._noticed
    with self._lock:  # Held while the processes agree.
      self._step = step
      return self._stop_at is not None and step >= self._stop_at

  def _watch(self) -> None:
    state: Any = jax_distributed.global_state
    while not self._closed.wait(_POLL_S):
      try:
        if self._noticed:
          state.client.key_value_set(f"{_NOTICE}/{state.process_id}", "1", allow_overwrite=True)
        if state.client.key_value_dir_get(_NOTICE):
          with self._lock:
            self._stop_at = max(exchange("the stop", self._step, _STOP_LIMIT_S)) + 1
          return
        if left := _left():
          # Process 0 holds the store: it goes last, when the one that failed has said why.
          if not self._closed.wait(_LEAVE_LIMIT_S * (0.5 if state.process_id else 1.5)):
            error = _ended(left)
            print(f"error: {error}", file=sys.stderr)
            _exit(error.status)
          return
      except (UserError, jax.errors.JaxRuntimeError) as error:
        print(f"WARNING: SIGTERM is not heeded: {error}", file=sys.stderr)
        return


def batch_share(sharding: jax.sharding.Sharding, batch_size: int) -> tuple[int, int]:
  """Which share of a batch's rows this process's devices hold: its number, and of how many.

  `sharding` is that of arrays (B, T). Processes whose devices hold the same rows have one share.
  Raises UserError for a process without a device in the sharding's mesh.
  """
  rows: dict[int, set[tuple[int, int]]] = {}
  indices: dict[Any, Any] = dict(sharding.devices_indices_map((batch_size, 1)))
  for device, (index, _) in indices.items():
    start, stop, _ = index.indices(batch_size)
    rows.setdefault(device.process_index, set()).add((start, stop))
  if jax.process_index() not in rows:
    raise UserError(
        f"The mesh leaves out all devices of process {jax.process_index()}; change the config's"
        " mesh, or start fewer processes."
    )
  shares = sorted({tuple(sorted(held)) for held in rows.values()})
  return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def whole_batch(
    sharding: jax.sharding.Sharding, batch_size: int, local: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Arrays (B, ...) of all processes' rows, of which `local` are those of this one's share."""
  return {
      name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
      for name, rows in local.items()
  }
