import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data.sources import openi, source
from chexmix_jax.errors import UserError

_REPORTS = 'uid,findings,impression\n1,"Clear, dry lungs.",Normal.\n2,,No change.\n3,Old.,\n'
_PROJECTIONS = """uid,filename,projection
1,1_lateral.png,Lateral
1,1_a.png,Frontal
1,1_b.png,Frontal
2,2_a.png,Frontal
3,3_lateral.png,Lateral
"""


def _label(report):
  return np.full(14, len(report) % 50, np.int8)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "images" / "images_normalized").mkdir(parents=True)
  (tmp_path / "indiana_reports.csv").write_text(_REPORTS)
  (tmp_path / "indiana_projections.csv").write_text(_PROJECTIONS)
  for name, first in (("1_a", 0), ("1_b", 255), ("2_a", 0)):
    pixels = np.abs(first - np.arange(64)).astype(np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "images" / "images_normalized" / f"{name}.png")
  return tmp_path


def test_one_study_for_each_report_with_a_frontal_view(folder):
  found = openi.studies(folder, _label).studies
  assert [s.study_id for s in found] == ["1", "2"]
  content = found[0].load(8)
  assert content.report == "Clear, dry lungs. Normal."
  assert content.image[0, 0] < content.image[-1, -1]  # 1_a; in 1_b it is the other way round
  np.testing.assert_array_equal(content.labels, _label(content.report))
  assert found[1].load(8).report == "No change."
  assert all(s.split in source.SPLITS for s in found)


def test_bad_tables_are_named(folder):
  (folder / "indiana_projections.csv").write_text("uid,filename,projection\n9,a.png,Frontal\n")
  with pytest.raises(UserError, match=r"indiana_projections\.csv row 2 has a uid without"):
    openi.studies(folder, _label)
  (folder / "indiana_projections.csv").write_text("uid,filename,projection\n1,a.png,Lateral\n")
  with pytest.raises(UserError, match="lists no Frontal"):
    openi.studies(folder, _label)
  (folder / "indiana_reports.csv").write_text("uid,report\n1,x\n")
  with pytest.raises(UserError, match="has no column 'findings'"):
    openi.studies(folder, _label)


def test_the_real_set(shared):
  found = openi.studies(shared / "data" / "openi", _label).studies
  assert len(found) == 3
  record = source.load_record(found[0], 64)
  assert record["report"] and record["image"].startswith(b"\x89PNG")
