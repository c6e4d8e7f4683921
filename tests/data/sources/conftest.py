"""What the tests of all readers share."""

import re

import pytest


@pytest.fixture
def assert_refused():
  """Of a source exactly one row is refused, for this reason; the account adds up."""

  def check(found, message, num_rows, secrets=()):
    (refusal,) = found.refused
    assert re.search(message, refusal.reason)
    assert not any(secret in refusal.reason for secret in secrets)
    assert found.num_rows == num_rows and refusal.level == "row" and refusal.kind
    assert found.studies

  return check
