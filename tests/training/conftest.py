"""Lets the tests of this folder import small_runs, which the script kills.py shares."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import small_runs


@pytest.fixture(scope="session")
def config(tokens_dir):
  """A masked run of nine steps, with dropout, that saves every third."""
  return small_runs.make_config(tokens_dir)


@pytest.fixture(scope="session")
def whole_run(config, tmp_path_factory):
  """The run directory of the config, never interrupted."""
  run_dir = tmp_path_factory.mktemp("whole") / "run"
  small_runs.train_compiling_once(config, run_dir)
  return run_dir
