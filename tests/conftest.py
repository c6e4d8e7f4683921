"""Shared fixtures: where the project's reference files lie, when they are there."""

import pathlib

import pytest


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder `shared` beside the repository; tests that need it skip where it is absent."""
  folder = pathlib.Path(__file__).resolve().parents[2] / "shared"
  if not folder.is_dir():
    pytest.skip(f"the reference files are not at {folder}")
  return folder
