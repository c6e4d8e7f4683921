"""Results that are kept until all are there."""

import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.inference.journal import Journal

REQUEST = {"command": "report", "ratio": 0.5, "layers": (1, 2)}


@pytest.fixture
def output(tmp_path):
  return tmp_path / "new" / "a.csv"


def start(output, **changes):
  return Journal(output, {**REQUEST, **changes}, [output])


def rows(*texts):
  errors = np.array(["" if text else "damaged" for text in texts])
  good = [text for text in texts if text]
  return {"error": errors} | ({"text": np.array(good)} if good else {})


def test_it_goes_on_and_comes_to_an_end(output):
  journal = start(output)
  assert journal.done == 0 and not journal.is_finished and not output.parent.exists()
  journal.append(rows("a", None))
  again = start(output)
  assert again.done == 2
  again.append(rows(None))
  again.append(rows("longer text", "b"))
  assert again.done == start(output).done == 5
  found = again.read()
  assert found["error"].tolist() == ["", "damaged", "damaged", "", ""]
  assert found["text"].tolist() == ["a", "longer text", "b"]
  output.write_text("all of it")
  again.finish()
  assert start(output).is_finished
  assert sorted(p.name for p in output.parent.iterdir()) == ["a.csv", "a.csv.request.json"]


def test_another_request_is_refused_while_under_way_and_afterwards(output):
  journal = start(output)
  journal.append(rows("a"))
  with pytest.raises(UserError, match=r"another ratio; .*a\.csv\.partial/request\.json"):
    start(output, ratio=0.25)
  output.write_text("all of it")
  journal.finish()
  with pytest.raises(UserError, match=r"with another ratio, layers; .*a.csv.request.json"):
    start(output, ratio=0.25, layers=None)


def test_what_others_wrote_is_left_alone(output):
  output.parent.mkdir()
  output.write_text("mine")
  with pytest.raises(UserError, match=r"a\.csv is there already"):
    start(output)
  folder = output.parent
  with pytest.raises(UserError, match="new is there already"):
    Journal(folder, REQUEST, [folder / "pictures.csv"])
  output.unlink()
  assert Journal(folder, REQUEST, [folder / "pictures.csv"]).done == 0


def test_output_that_was_deleted_is_made_again(output):
  journal = start(output)
  journal.append(rows("a"))
  journal.finish()
  assert not start(output, ratio=1).is_finished


def test_a_damaged_request_is_named(output):
  start(output).append(rows("a"))
  (output.parent / "a.csv.partial" / "request.json").write_text("{")
  with pytest.raises(UserError, match=r"request\.json is damaged"):
    start(output)


def test_an_interruption_before_the_first_batch_changes_nothing(output):
  (output.parent / "a.csv.partial").mkdir(parents=True)
  journal = start(output)
  journal.append(rows("a"))
  assert start(output).done == 1
