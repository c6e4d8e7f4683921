import csv

import pytest

from chexmix_jax import phantom
from chexmix_jax.errors import UserError
from chexmix_jax.labeler import label_report
from chexmix_jax.labeler.table import label_file
from chexmix_jax.labels import CHEXPERT_14, UNKNOWN


def _write(path, *rows):
  with path.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows(rows)
  return path


def _read(path):
  with path.open(newline="", encoding="utf-8") as file:
    return list(csv.reader(file))


def test_writes_the_other_columns_and_then_the_labels(tmp_path):
  source = _write(
      tmp_path / "in.csv",
      ("study", "impression", "patient", "findings"),
      ("s1", "Possible edema.", "é, 7", "No effusion."),
      ("s2", "", "8", "The heart is\nenlarged."),
      ("s3", " ", "9", ""),
  )
  assert label_file(source, ("findings", "impression"), tmp_path / "out.csv") == 3
  header, *rows = _read(tmp_path / "out.csv")
  assert header == ["study", "patient", *CHEXPERT_14]
  assert [row[:2] for row in rows] == [["s1", "é, 7"], ["s2", "8"], ["s3", "9"]]
  cells = [dict(zip(header, row, strict=True)) for row in rows]
  assert {name: v for name, v in cells[0].items() if v and name in CHEXPERT_14} == {
      "Edema": "-1", "Lung Opacity": "-1", "Pleural Effusion": "0",
  }  # fmt: skip
  assert cells[1]["Cardiomegaly"] == "1"
  # Without any text nothing is known, not even that there is no finding.
  assert rows[2][2:] == [""] * 14


def test_has_the_labels_of_the_labeler(tmp_path):
  reports = [phantom.describe(3, index)[1] for index in range(100)]
  source = _write(tmp_path / "in.csv", ("id", "report"), *enumerate(reports))
  label_file(source, ("report",), tmp_path / "out.csv")
  for report, (_, *cells) in zip(reports, _read(tmp_path / "out.csv")[1:], strict=True):
    assert [int(cell) if cell else UNKNOWN for cell in cells] == label_report(report).tolist()


def test_texts_are_joined_in_the_order_named(tmp_path):
  source = _write(tmp_path / "in.csv", ("a", "b"), ("effusion.", "No"))
  label_file(source, ("b", "a"), tmp_path / "out.csv")
  header, row = _read(tmp_path / "out.csv")
  assert row[header.index("Pleural Effusion")] == "0"


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (None, ["findings"], "cannot be read .No such file"),
        (b"", ["findings"], "is empty"),
        (b"id,findings\n", ["findings"], "has no rows"),
        (b"id,Findings\n1,Edema.\n", ["findings"], "no column 'findings'; did you mean 'Findings'"),
        (b"id,note\n1,Edema.\n", ["findings"], "no column 'findings'; it has 'id', 'note'"),
        (b"id,findings\n1,Edema.\n2,Caf\xe9.\n", ["findings"], "Row 3 of .* is not UTF-8"),
        (b"id,findings\n1,Edema., more\n", ["findings"], "Row 2 of .* has 3 cells where .* has 2"),
        (b"id,id,findings\n1,2,Edema.\n", ["findings"], "column 'id' twice"),
        (b"id,Edema,findings\n1,1,Edema.\n", ["findings"], "column 'Edema' already"),
        (b"id,findings\n1,Edema.\n", [], "No column of text is named"),
    ],
)
def test_says_what_to_mend_and_writes_nothing(tmp_path, content, columns, message):
  source = tmp_path / "in.csv"
  if content is not None:
    source.write_bytes(content)
  with pytest.raises(UserError, match=message):
    label_file(source, columns, tmp_path / "out.csv")
  assert {path.name for path in tmp_path.iterdir()} <= {"in.csv"}


def test_never_writes_over_its_input(tmp_path):
  source = _write(tmp_path / "in.csv", ("id", "report"), ("1", "Edema."))
  before = source.read_bytes()
  (tmp_path / "link.csv").symlink_to(source)
  for output in (source, tmp_path / "link.csv"):
    with pytest.raises(UserError, match="is the input; name another file"):
      label_file(source, ("report",), output)
  assert source.read_bytes() == before
  with pytest.raises(UserError, match="is no folder that can be written to"):
    label_file(source, ("report",), tmp_path / "none" / "out.csv")
