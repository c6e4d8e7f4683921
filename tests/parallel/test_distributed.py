"""What processes agree on: by a made-up store where one process is enough, else by real ones."""

import json
import os
import signal
import time
import types

import jax
import pytest
from jax._src import distributed as jax_distributed

from chexmix_jax.errors import ProcessError, Stopped, UserError, exit_status
from chexmix_jax.parallel import distributed
from chexmix_jax.parallel.distributed import StopRequest, batch_share, check_same, exchange
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import named_sharding


class Store(dict):
  """The key-value store of jax's client."""

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite or key not in self
    self[key] = value

  def key_value_dir_get(self, key):
    return [(name, value) for name, value in self.items() if name.startswith(f"{key}/")]


@pytest.fixture
def store(monkeypatch):
  """Makes this process number 1 of 3, whose store the test fills for the others."""
  store = Store()
  state = types.SimpleNamespace(client=store, process_id=1, num_processes=3)
  monkeypatch.setattr(jax_distributed, "global_state", state)
  monkeypatch.setattr(distributed, "_POLL_S", 0.01)
  shut = []
  monkeypatch.setattr(jax.distributed, "shutdown", lambda: shut.append(True))
  yield store
  assert len(shut) <= 1


def others_say(store, name, first, third):
  store.update({f"chexmix/exchange/{name}/0": first, f"chexmix/exchange/{name}/2": third})


def test_a_process_alone_agrees_with_itself():
  assert exchange("anything", {"a": 1}) == [{"a": 1}]
  check_same({"steps": 3})
  with distributed.together():
    pass


def test_all_processes_get_the_values_of_all(store):
  others_say(store, "/runs/a", "[3, 6]", "[]")
  assert exchange("/runs/a", [3]) == [[3, 6], [3], []]


def test_processes_that_are_late_are_named(store):
  store["chexmix/exchange/the first step/0"] = "null"
  message = "Process 2 of 3 did not come to the first step within 0 s"
  with pytest.raises(ProcessError, match=message) as raised:
    exchange("the first step", limit_s=0.05)
  assert exit_status(raised.value) == 1  # Another start may be luckier.
  with pytest.raises(UserError, match="Process 0, 2 of 3 did not come to the end"):
    exchange("the end", limit_s=0.05)


def test_a_process_that_has_ended_is_named_at_once(store):
  store["chexmix/left/2"] = '[2, "tokens holds no tokens."]'
  with pytest.raises(ProcessError, match=r"^Process 2 ended: tokens holds no tokens\.$") as raised:
    exchange("the first step")
  assert exit_status(raised.value) == 2


def test_processes_that_differ_are_named_with_what_differs(store):
  others_say(store, "the start", '{"train": {"seed": 1, "steps": 3}, "jax": "0.0"}', "null")
  others_say(store, "the comparison", "[]", '["code"]')
  message = (
      "^Process 1 differs from process 0 in code, jax, jaxlib, train.steps; process 2 differs from"
      " process 0 in code: start"
  )
  with pytest.raises(UserError, match=message):
    check_same({"train": {"seed": 1, "steps": 4}})


def test_an_error_is_left_to_the_others(store):
  others_say(store, "the end", "null", "null")
  store.update({"chexmix/left/0": '[1, "x"]', "chexmix/left/2": '[1, "x"]'})
  with pytest.raises(UserError, match="the disk is full"), distributed.together():
    raise UserError("the disk is full")
  assert json.loads(store["chexmix/left/1"]) == [2, "the disk is full"]


def test_what_another_process_said_explains_an_error_of_jax(store, monkeypatch):
  exits = []
  monkeypatch.setattr(distributed.atexit, "register", lambda _, status: exits.append(status))
  store.update({"chexmix/left/0": '[1, "ValueError: x"]', "chexmix/left/2": '[2, "full"]'})
  with (
      pytest.raises(ProcessError, match="Process 0 ended: ValueError: x") as raised,
      distributed.together(),
  ):
    raise jax.errors.JaxRuntimeError("connection closed by peer")
  assert [exit_status(raised.value)] == exits == [1]


def test_a_process_that_the_others_do_not_hear_leaves_without_waiting(store, monkeypatch):
  exits = []
  monkeypatch.setattr(distributed, "_LEAVE_LIMIT_S", 0.05)
  monkeypatch.setattr(distributed.atexit, "register", lambda *call: exits.append(call))
  with pytest.raises(Stopped), distributed.together():
    raise Stopped("stopped")
  ((_, status),) = exits
  assert status == 143


def test_sigterm_is_noted_alone_however_often_it_comes():
  before = signal.getsignal(signal.SIGTERM)
  with StopRequest() as stop:
    assert not stop.reached(1)
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reached(2)
  assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("ours", [True, False])
def test_all_processes_stop_after_the_step_of_the_fastest(store, ours):
  with StopRequest() as stop:
    assert not stop.reached(5)
    others_say(store, "the stop", "7", "6")
    if ours:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      store["chexmix/notice/2"] = "1"
    deadline = time.monotonic() + 10
    while "chexmix/exchange/the stop/1" not in store and time.monotonic() < deadline:
      time.sleep(0.01)
    assert store["chexmix/exchange/the stop/1"] == "5"
    assert [stop.reached(step) for step in (6, 7, 8)] == [False, False, True]
  assert ("chexmix/notice/1" in store) == ours


def test_sigterm_before_the_first_step_stops_all_at_once(store):
  others_say(store, "the stop", "-1", "-1")
  store["chexmix/notice/0"] = "1"
  with StopRequest() as stop:
    while "chexmix/exchange/the stop/1" not in store:
      time.sleep(0.01)
    assert stop.reached(40)


def test_a_process_in_a_step_with_one_that_has_ended_ends_too(store, monkeypatch, capsys):
  exits = []
  monkeypatch.setattr(distributed, "_LEAVE_LIMIT_S", 0.02)
  monkeypatch.setattr(distributed, "_exit", exits.append)
  with StopRequest():
    store["chexmix/left/2"] = '[2, "the disk is full"]'
    deadline = time.monotonic() + 10
    while not exits and time.monotonic() < deadline:
      time.sleep(0.01)
  assert exits == [2]
  assert capsys.readouterr().err == "error: Process 2 ended: the disk is full\n"


class _Device(types.SimpleNamespace):
  __hash__ = object.__hash__


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({0: [(0, 4)], 1: [(4, 8)]}, (1, 2)),
        ({0: [(4, 6), (6, 8)], 1: [(0, 2), (2, 4)]}, (0, 2)),
        # Two processes along the tensor axis hold the same rows.
        ({0: [(0, 4)], 1: [(0, 4)], 2: [(4, 8)], 3: [(4, 8)]}, (0, 2)),
        ({0: [(None, None)], 1: [(None, None)]}, (0, 1)),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(monkeypatch, held, expected):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  indices = {
      _Device(process_index=process): (slice(*rows), slice(None))
      for process, all_rows in held.items()
      for rows in all_rows
  }
  sharding = types.SimpleNamespace(devices_indices_map=lambda shape: indices)
  assert batch_share(sharding, 8) == expected
  monkeypatch.setattr(jax, "process_index", lambda: 9)
  with pytest.raises(UserError, match="leaves out all devices of process 9"):
    batch_share(sharding, 8)


def test_one_process_reads_all_rows():
  sharding = named_sharding(make_mesh(MeshConfig()), ("batch", None))
  assert batch_share(sharding, 8 * jax.device_count()) == (0, 1)
