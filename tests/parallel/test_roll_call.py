"""Processes that come together, or find out who has not; threads stand for processes."""

import concurrent.futures
import socket
import time

import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.parallel.roll_call import call_roll


@pytest.fixture
def address():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def call(address, indices, count, limit_s, wait_s=0.0):
  """What becomes of the calls of these processes, each `wait_s` after the one before."""
  with concurrent.futures.ThreadPoolExecutor(count) as threads:
    calls = []
    for index in indices:
      calls.append(threads.submit(call_roll, address, index, count, limit_s))
      time.sleep(wait_s)
  return [str(call.exception()) for call in calls]


@pytest.mark.parametrize("indices", [(0, 1, 2), (2, 1, 0)])
def test_all_go_on_when_the_last_has_come_and_the_port_is_free(address, indices):
  assert call(address, indices, 3, 30, wait_s=0.3) == ["None"] * 3
  with socket.create_server(("", int(address.rpartition(":")[2]))):
    pass
  call_roll(address, 0, 1, 30)  # Alone.


def test_those_that_are_late_are_named_to_all(address):
  sentence = f"Process 1, 3 of 5 did not come to {address} within 1 s; see the log of it."
  assert call(address, (0, 2, 4), 5, 1) == [sentence] * 3


def test_a_process_0_that_does_not_answer_is_named(address):
  with pytest.raises(UserError, match=f"Process 0 did not answer at {address} within 0 s"):
    call_roll(address, 1, 2, 0.1)


def test_other_programs_are_not_heard(address):
  with concurrent.futures.ThreadPoolExecutor() as threads:
    first = threads.submit(call_roll, address, 0, 2, 30)
    time.sleep(0.3)
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"chexmix process x\n", b""):
      with socket.create_connection(address.split(":")) as other:
        other.sendall(words)
    assert not first.done()
    call_roll(address, 1, 2, 30)
    first.result()


def test_a_port_that_is_taken_is_named(address):
  port = int(address.rpartition(":")[2])
  with (
      socket.create_server(("", port)),
      pytest.raises(UserError, match=f"cannot listen at port {port} .Address already in use"),
  ):
    call_roll(address, 0, 2, 1)
