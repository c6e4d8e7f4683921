"""All that can be wrong with a set at once: good rows come through, and the account adds up."""

import json

import numpy as np
import pytest
from PIL import Image

from chexmix_jax import prepare
from chexmix_jax.data import studies

GOOD = "The lungs are clear."


def _noise(seed, size=(40, 50)):
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def _truncated(path):
  _noise(1).save(path)
  path.write_bytes(path.read_bytes()[:-900])


# Row by row from 2 on: the file, how it is made, the rest of the row, the level and kind refused.
CASES = [
    ("a.png", lambda path: _noise(0).save(path), f"{GOOD},1", None),
    ("b.png", lambda path: path.write_bytes(b""), f"{GOOD},1", ("picture", "empty file")),
    ("c.png", lambda path: path.write_text("text"), f"{GOOD},1", ("picture", "damaged image")),
    ("d.jpg", _truncated, f"{GOOD},1", ("picture", "damaged image")),
    ("e.png", lambda path: _noise(2, (1, 1)).save(path), f"{GOOD},1", ("picture", "too small")),
    ("f.png", lambda path: Image.new("L", (40, 50), 9).save(path), f"{GOOD},1",
     ("picture", "constant image")),
    ("g.png", lambda path: None, f"{GOOD},1", ("picture", "missing image")),
    ("h.gif", lambda path: _noise(3).save(path), f"{GOOD},1", ("picture", "not a picture")),
    ("i.png", lambda path: _noise(4).save(path), f"{'word ' * 20_000},1",
     ("study", "report too long")),
    ("a.png", lambda path: None, f"{GOOD},1", ("row", "duplicate picture")),
    ("j.png", lambda path: _noise(5).save(path), f"{GOOD},2", ("row", "label")),
    ("../k.png", lambda path: None, f"{GOOD},1", ("row", "path outside")),
    ("l.png", lambda path: None, "Opacit\udce9.,1", ("row", "encoding")),
    ("m.png", lambda path: None, "", ("row", "too few cells")),
    ("n.png", lambda path: _noise(6).save(path), ",1", None),
]  # fmt: skip


@pytest.fixture
def table(tmp_path):
  lines = ["path,text,Edema"]
  for name, make, rest, _ in CASES:
    if "/" not in name:
      make(tmp_path / name)
    lines.append(f"{name},{rest}" if rest else name)
  path = tmp_path / "list.csv"
  path.write_bytes("\n".join([*lines, ""]).encode(errors="surrogateescape"))
  return path


def test_good_rows_come_through_and_every_other_has_its_reason(table, tmp_path, capsys):
  output = tmp_path / "studies"
  prepare.main([
      "--source=table", f"--data_dir={table}", "--columns=image=path,report=text", "--size=16",
      "--workers=1", "--max_refused=1", f"--output={output}",
  ])  # fmt: skip
  quarantine = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
  for number, (name, _, _, refused) in enumerate(CASES, start=2):
    found = {
        (line["level"], line["kind"])
        for line in quarantine
        if line["where"].endswith(f"list.csv row {number}")
    }
    assert found >= ({refused} if refused else set()) and bool(found) == bool(refused), name
  account = studies.read_card(output)["account"]
  for level in account.values():
    assert level["read"] == level["written"] + level["refused"]
  assert account["rows"]["read"] == len(CASES)
  assert account["rows"]["written"] == account["studies"]["read"] == 10
  assert account["studies"]["written"] == account["pictures"]["written"] == 2
  written = [
      row
      for split in studies.read_card(output)["splits"]
      for row in studies.open_studies(output, split)
  ]
  assert sorted(row["report"] for row in written) == ["", GOOD]
  assert "rows: 15 read, 10 used, 5 refused (" in capsys.readouterr().out
