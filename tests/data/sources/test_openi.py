import re

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data.sources import openi, source
from chexmix_jax.errors import UserError

_REPORTS = """uid,indication,findings,impression
1,Cough.,"Clear, dry lungs.",Normal.
2,,,No change.
3,,Old.,
"""
_PROJECTIONS = """uid,filename,projection
1,1_lateral.png,Lateral
1,1_a.png,Frontal
1,1_b.png,Frontal
2,2_a.png,Frontal
"""


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "images" / "images_normalized").mkdir(parents=True)
  (tmp_path / "indiana_reports.csv").write_text(_REPORTS)
  (tmp_path / "indiana_projections.csv").write_text(_PROJECTIONS)
  for name, first in (("1_a", 0), ("1_b", 255), ("2_a", 0)):
    pixels = np.abs(first - np.arange(64)).astype(np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "images" / "images_normalized" / f"{name}.png")
  return tmp_path


def test_one_study_for_each_report_with_all_its_views(folder):
  found = openi.studies(folder, folder).studies
  assert [s.study_id for s in found] == ["1", "2", "3"]
  sections = found[0].report()
  assert (sections.indication, sections.findings, sections.impression) == (
      "Cough.", "Clear, dry lungs.", "Normal."
  )  # fmt: skip
  assert [p.view for p in found[0].pictures] == ["frontal", "frontal", "lateral"]
  image = found[0].pictures[0].read(8)
  assert image[0, 0] < image[-1, -1]  # 1_a; in 1_b it is the other way round
  assert found[2].pictures == () and found[0].labels is None
  assert all(s.split in source.SPLITS and s.patient_id == s.study_id for s in found)


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("projections", "9,a.png,Frontal", "row 6 has a uid without a report"),
        ("projections", "2,../../../x.png,Frontal", "row 6 names a file outside"),
        ("projections", "2,2_a.png,Frontal", "row 6 names a picture that stands before"),
        ("projections", "2", "row 6 has too few cells"),
        ("projections", ",2_c.png,Frontal", "row 6 has no 'uid'"),
        ("reports", "1,,Secret.,", "row 5 has a uid that stands before"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(folder, table, row, message):
  path = folder / f"indiana_{table}.csv"
  path.write_text(f"{path.read_text()}{row}\n")
  found = openi.studies(folder, folder)
  (refusal,) = found.refused
  assert re.search(rf"{path.name} {message}", refusal.reason) and "Secret" not in refusal.reason
  assert len(found.studies) == 3 and found.num_rows == 8


def test_bad_tables_are_named(folder):
  (folder / "indiana_reports.csv").write_text("uid,report\n1,x\n")
  with pytest.raises(UserError, match="has no column 'findings'"):
    openi.studies(folder, folder)
  (folder / "indiana_reports.csv").unlink()
  with pytest.raises(UserError, match=r"indiana_reports\.csv cannot be read"):
    openi.studies(folder, folder)


def test_the_real_set(shared):
  folder = shared / "data" / "openi"
  found = openi.studies(folder, folder)
  with_pictures = [study for study in found.studies if study.pictures]
  assert len(found.studies) == 3362 and sum(len(s.pictures) for s in with_pictures) == 8
  assert with_pictures[0].pictures[0].read(64).shape == (64, 64)
