import gzip
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data import studies
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.reports import Sections
from chexmix_jax.data.sources import table
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.errors import UserError
from chexmix_jax.labels import INDEX, UNKNOWN

_COLUMNS = {"image": "Path", "report": "Text", "study": "Study", "patient": "Subject",
            "split": "Fold", "view": "View", "order": "Date"}  # fmt: skip
_HEAD = "Path,Text,Study,Subject,Fold,View,Date,Edema,Fracture"
_ROWS = [
    "a.png,FINDINGS: Clear. IMPRESSION: Normal.,1,p,Training,PA,2020-01-02,1.0,-1",
    "b.png,,1,p,train,LATERAL,2020-01-02,,",
    "c.png,Old.,2,p,train,PA,2019-12-31,0,",
    "d/d.dcm,Other.,3,q,validation,PA,,,",
]


@pytest.fixture
def write(tmp_path):
  def make(*rows, name="list.csv", head=_HEAD):
    text = "\n".join([head, *_ROWS, *rows, ""]).encode(errors="surrogateescape")
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path

  return make


@pytest.mark.parametrize("name", ["list.csv", "list.csv.gz"])
def test_columns_by_name(write, name):
  path = write(name=name)
  found = table.studies(path, path.parent, _COLUMNS).studies
  assert [(s.study_id, s.patient_id, s.split) for s in found] == [
      ("1", "p", "train"), ("2", "p", "train"), ("3", "q", "val")
  ]  # fmt: skip
  assert [p.view for p in found[0].pictures] == ["frontal", "lateral"]
  assert found[2].pictures[0].file == str(path.parent / "d" / "d.dcm")
  assert found[0].report().findings == "Clear." and found[0].report().impression == "Normal."
  assert found[0].prior().findings == "Old." and found[1].prior is None
  assert found[0].labels[INDEX["Edema"]] == 1 and found[0].labels[INDEX["Fracture"]] == -1
  assert found[0].labels[INDEX["Pneumonia"]] == UNKNOWN and found[2].labels is None


@pytest.mark.parametrize("name", ["list.jsonl", "list.jsonl.gz"])
def test_json_lines_with_several_images_and_no_ids(tmp_path, name):
  rows = [
      {"files": ["a.png", "b.png"], "f": "Eins.", "views": ["PA", "LL"]},
      {"files": "c.png", "f": None, "views": "PA"},
      {"files": [], "f": 5, "views": None},
  ]
  text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
  (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
  columns = {"image": "files", "findings": "f", "view": "views"}
  found = table.studies(tmp_path / name, tmp_path, columns).studies
  assert [s.study_id for s in found] == [s.patient_id for s in found] == ["1", "2", "3"]
  assert [[p.view for p in s.pictures] for s in found] == [["frontal", "lateral"], ["frontal"], []]
  assert found[0].report().findings == "Eins." and found[1].report is None
  assert found[2].report().findings == "5"


def test_several_images_in_a_cell(tmp_path):
  path = tmp_path / "a.csv"
  # An index without a name, as pandas writes it, is no image.
  path.write_text(',p,v\n0,a.png;;b.png;,PA;x;L\n1,"[""c.png"", ""d.png""]",AP\n2,[e].png,\n')
  found = table.studies(path, tmp_path, {"image": "p", "view": "v"}).studies
  assert [[(pathlib.Path(p.file).name, p.view) for p in s.pictures] for s in found] == [
      [("a.png", "frontal"), ("b.png", "lateral")],
      [("c.png", "frontal"), ("d.png", "unknown")],
      [("[e].png", "unknown")],
  ]
  found = table.studies(path, tmp_path, {"findings": "p"}).studies
  assert found[0].pictures == () and {s.split for s in found} <= {"train", "val", "test"}


def test_a_section_of_its_own_column_joins_the_report(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(
      '{"r": "HISTORY: Old. FINDINGS: Clear.", "i": "Cough.", "n": 0, "p": 0, "o": 10}\n'
      '{"r": "Clear.", "i": NaN, "n": 1, "p": 0, "o": 9}\n'
  )
  columns = {"report": "r", "indication": "i", "study": "n", "patient": "p", "order": "o"}
  found = table.studies(path, tmp_path, columns).studies
  assert [(s.study_id, s.patient_id) for s in found] == [("0", "0"), ("1", "0")]
  assert found[0].report() == Sections(indication="Cough.", findings="Clear.")
  # By number: 9 is before 10.
  assert found[0].prior() == Sections(findings="Clear.") and found[1].prior is None


def test_each_question_is_a_study_of_its_own(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text(
      "p,s,who,q,a,r,o\n"
      "a.png,1,x,Is it  large?,yes,,1\n"
      "a.png,1,x,,,Clear.,2\n"
      "b.png,2,y,Where?,left,,1\n"
      "a.png,1,x,Where?,right,,2\n"
      "c.png,1,x,,,,3\n"
      "d.png,1:1,x,,,,4\n"
  )
  columns = {"image": "p", "study": "s", "patient": "who", "question": "q", "answer": "a",
             "report": "r", "order": "o"}  # fmt: skip
  made = table.studies(path, tmp_path, columns)
  # Nothing is merged into a question.
  (refusal,) = made.refused
  assert refusal.where.endswith("row 7") and refusal.kind == "duplicate id"
  found = {s.study_id: s for s in made.studies}
  assert {name: (s.patient_id, s.question, s.answer) for name, s in found.items()} == {
      "1:1": ("x", "Is it large?", "yes"), "1": ("x", "", ""), "2:1": ("y", "Where?", "left"),
      "1:2": ("x", "Where?", "right"),
  }  # fmt: skip
  assert len({found[name].split for name in ("1:1", "1", "1:2")}) == 1
  assert [len(s.pictures) for s in made.studies] == [1, 2, 1, 1]
  assert found["1:2"].prior is None and found["1"].report().findings == "Clear."


def test_the_leak_check_sees_the_picture_of_two_questions(tmp_path):
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).save(
      tmp_path / "a.png"
  )
  path = tmp_path / "a.csv"
  path.write_text("p,f,q,a\na.png,train,Where?,left\na.png,test,Large?,yes\n")
  columns = {"image": "p", "split": "f", "question": "q", "answer": "a"}
  made = table.studies(path, tmp_path, columns)
  assert [s.study_id for s in made.studies] == ["2:1", "3:1"]
  with pytest.raises(UserError, match="1 more have nearly the same picture"):
    write_studies(made, tmp_path / "studies", LoadOptions(16), WriteOptions())
  options = WriteOptions(drop_leaks=True, max_refused=0.5)
  write_studies(made, tmp_path / "studies", LoadOptions(16), options)
  (row,) = studies.open_studies(tmp_path / "studies", "test", ("question",))
  assert (row["question"], row["answer"], row["report"]) == ("Large?", "yes", "")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("a.png,Where?,", "row 3 has question but no answer"),
        ("a.png,,left", "row 3 has answer but no question"),
        (",Where?,left", "row 3 has neither an image nor a report"),
    ],
)
def test_a_question_needs_its_answer_and_a_picture(tmp_path, assert_refused, cells, message):
  (tmp_path / "a.csv").write_text(f"p,q,a\nb.png,Secret?,no\n{cells}\n")
  columns = {"image": "p", "question": "q", "answer": "a"}
  found = table.studies(tmp_path / "a.csv", tmp_path, columns)
  assert_refused(found, message, 2, ("Secret", "left"))


def test_reports_alone_in_another_language(tmp_path):
  (tmp_path / "a.csv").write_text("r,l\nNormal.,de\n\"Herz: gross\nLunge frei\",de\n")
  found = table.studies(tmp_path / "a.csv", tmp_path, {"report": "r", "language": "l"}).studies
  assert [s.report().language for s in found] == ["de", "de"] and found[0].pictures == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x.png,Secret.,4,q,holdout,PA,,,", "row 6 has a split that is not one of"),
        ("x.png,Secret.,4,q,val,PA,,2,", "row 6 has a 'Edema' that is not 1, 0, -1"),
        ("x.png,Secret.,4,q,val,PA,,yes,", "row 6 has a 'Edema' that is not 1, 0, -1"),
        ("../x.png,Secret.,4,q,val,PA,,,", "row 6 names a file outside"),
        ("/x.png,Secret.,4,q,val,PA,,,", "row 6 names a file outside"),
        ("x.png,Secret.,,q,val,PA,,,", "row 6 has no 'Study'"),
        ("x.png,Secret.,4,,val,PA,,,", "row 6 has no 'Subject'"),
        ("a.png,Secret.,4,q,val,PA,,,", "row 6 names a picture that stands before"),
        ("x.png,Secret.,1,q,val,PA,,,", "row 6 gives its study another patient or split"),
        (",,4,q,val,PA,,,", "row 6 has neither an image nor a report"),
        ("x.png,Secret.", "row 6 has too few cells"),
        ("x.png,Secret\udce9.,4,q,val,PA,,,", "row 6 is not UTF-8"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(write, assert_refused, row, message):
  path = write(row)
  assert_refused(table.studies(path, path.parent, _COLUMNS), message, 5, ("Secret",))


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "{", "{'a': 1}", "\udcff", '{"p": "x.png"}', '{"p": "x.png", "t": {"a": 1}}',
        '{"p": "x.png", "t": "\\ud800"}', '{"p": ["\\ud800.png"], "t": "x"}',
        '{"p": [], "t": ""}',
    ],
)  # fmt: skip
def test_a_bad_line_of_json_is_refused(tmp_path, assert_refused, line):
  good = json.dumps({"p": "a.png", "t": "Text."})
  path = tmp_path / "a.jsonl"
  path.write_bytes(f"{good}\n\n{line}\n".encode(errors="surrogateescape"))
  found = table.studies(path, tmp_path, {"image": "p", "report": "t"})
  assert_refused(found, r"a\.jsonl row 3", 2, ("Text",))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": "Pth"}, r"list\.csv has no column 'Pth'"),
        ({"picture": "Path"}, "'picture' is not known; use some of image, report"),
        ({"study": "Study"}, "names neither an image nor a report"),
        ({"image": "Path", "answer": "Text"}, "only one of question and answer"),
    ],
)
def test_bad_columns_are_named(write, columns, message):
  path = write()
  with pytest.raises(UserError, match=message):
    table.studies(path, path.parent, columns)


def test_a_column_that_no_line_of_json_has_is_named(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"p": "a.png"}\n{"p": "b.png"}\n')
  with pytest.raises(UserError, match="has no 'views'"):
    table.studies(tmp_path / "a.jsonl", tmp_path, {"image": "p", "view": "views"})


def test_a_table_of_another_encoding_is_named(tmp_path):
  (tmp_path / "a.csv").write_bytes("Path,Text\na.png,x\n".encode("utf-16"))
  with pytest.raises(UserError, match=r"a\.csv has no column 'Path'"):
    table.studies(tmp_path / "a.csv", tmp_path, {"image": "Path"})
