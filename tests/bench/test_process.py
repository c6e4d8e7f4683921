"""An object in another process: its answers, its errors, and its end."""

import os

import pytest

from chexmix_jax import cli
from chexmix_jax.bench.process import Process, peak_memory
from chexmix_jax.data.documents import parse_forms
from chexmix_jax.errors import UserError


def test_functions_are_called_on_the_object_where_it_is():
  with Process(dict, {"a": 1}) as process:
    process.call(dict.update, {"b": 2})
    assert process.call(dict.copy) == {"a": 1, "b": 2}


def test_what_is_refused_there_is_refused_here():
  with Process(str, "xray") as process, pytest.raises(UserError, match="'xray' is no form"):
    process.call(parse_forms)
  with pytest.raises(UserError, match="'trian' is not a command"):
    Process(cli.main, ["trian"])


def test_a_process_that_ends_by_itself_is_told_with_its_status():
  with pytest.raises(UserError, match="ended with status 3"):
    Process(os._exit, 3)


def test_peak_memory_is_in_bytes():
  before = peak_memory()
  held = bytearray(b"x" * (64 << 20))
  assert before + (32 << 20) < peak_memory() < 1 << 40
  del held
