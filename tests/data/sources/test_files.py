import gzip
import json
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chexmix_jax.data.sources import files, source, table
from chexmix_jax.errors import BadRow, UserError

_FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    ("root", "path", "inside"),
    [
        ("/data/x", "a/b.png", "/data/x/a/b.png"),
        ("/data/x", "a/../b.png", "/data/x/b.png"),
        ("/data/x", "/data/x/b.png", "/data/x/b.png"),
        ("/data/x/", "b.png", "/data/x/b.png"),
        ("/", "b.png", "/b.png"),
        ("/data/x", "../xy/b.png", None),
        ("/data/x", "/data/xy/b.png", None),
        ("/data/x", "..", None),
        ("/data/x", ".", None),
        (".", "../b.png", None),
        ("..", "../../b.png", None),
    ],
)
def test_paths_stay_in_the_root(root, path, inside):
  if inside is None:
    with pytest.raises(BadRow, match="row 5 names a file outside"):
      files.inside(pathlib.Path(root), path, "row 5")
  else:
    assert str(files.inside(pathlib.Path(root), path, "row 5")) == inside


@_FILES
@given(st.text(max_size=40))
def test_no_path_of_any_text_leaves_the_root(tmp_path, text):
  try:
    found = files.inside(tmp_path, text, "row 1")
  except BadRow:
    return
  assert tmp_path in found.parents and ".." not in found.parts


@_FILES
@given(st.binary(max_size=300))
def test_any_bytes_are_a_table_or_one_sentence(tmp_path, content):
  """Nothing but a UserError, and every row is read or refused."""
  path = tmp_path / "a.csv"
  path.write_bytes(b"Path,Text\n" + content)
  try:
    found = table.studies(path, tmp_path, {"image": "Path", "report": "Text"})
  except UserError as error:
    assert str(path) in str(error) or "no row that can be used" in str(error)
    return
  assert found.num_rows == len(found.studies) + len(found.refused)


@_FILES
@given(
    st.lists(
        st.one_of(
            st.dictionaries(st.sampled_from(["p", "t"]), st.none() | st.integers() | st.text()),
            st.integers(), st.lists(st.text(max_size=3), max_size=3),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_any_json_lines_are_rows_or_refused(tmp_path, rows):
  path = tmp_path / "a.jsonl"
  good = {"p": "good.png", "t": "Text."}
  path.write_text("".join(f"{json.dumps(row)}\n" for row in [good, *rows]))
  found = table.studies(path, tmp_path, {"image": "p", "report": "t"})
  assert found.num_rows == 1 + len(rows) == len(found.studies) + len(found.refused)


def test_a_cell_of_a_million_characters_and_lines_within_cells(tmp_path):
  (tmp_path / "a.csv").write_text('a,b\n"' + "x" * 1_000_000 + '","two\nlines"\n')
  ((where, row),) = files.read_table(tmp_path / "a.csv", ("a", "b"))
  assert where.endswith("row 2") and len(row["a"]) == 1_000_000 and row["b"] == "two\nlines"


@pytest.mark.parametrize("cut", [5, -10])
def test_a_broken_gzip_file_is_named(tmp_path, cut):
  path = tmp_path / "a.csv.gz"
  path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:cut])
  with pytest.raises(UserError, match=r"a\.csv\.gz"):
    list(files.read_table(path, ("a",)))
  (tmp_path / "a.jsonl.gz").write_bytes(path.read_bytes())
  with pytest.raises(UserError, match=r"a\.jsonl\.gz"):
    list(files.read_json_lines(tmp_path / "a.jsonl.gz"))


def test_the_newest_version_of_a_file_is_found(tmp_path):
  for name in ("t_2017.csv", "t_2020.csv.gz"):
    (tmp_path / name).touch()
  assert files.find_file(tmp_path, "t_*.csv", "set").name == "t_2020.csv.gz"
  with pytest.raises(UserError, match=r"has no u_\*\.csv; give the set folder"):
    files.find_file(tmp_path, "u_*.csv", "set")


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans()))
def test_a_label_is_one_of_four_or_refused(cell):
  try:
    labels = files.label_cells({"Edema": cell}, "row 3")
  except BadRow as error:
    assert "row 3 has a 'Edema'" in str(error)
    return
  assert labels.dtype == np.int8 and set(labels.tolist()) <= {-2, -1, 0, 1}


@pytest.mark.parametrize(
    ("text", "view"),
    [("PA", "frontal"), ("ap", "frontal"), ("AP_horizontal", "frontal"), ("AP Supine", "frontal"),
     ("Frontal", "frontal"), ("LATERAL", "lateral"), ("LL", "lateral"), ("L", "lateral"),
     ("", "unknown"), ("SWIMMERS", "unknown")],
)  # fmt: skip
def test_views(text, view):
  assert source.view_of(text) == view
