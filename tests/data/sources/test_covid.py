import pytest

from chexmix_jax.data.sources import covid
from chexmix_jax.errors import UserError
from chexmix_jax.labels import INDEX, UNKNOWN

_HEAD = "patientid,offset,finding,view,modality,folder,filename,clinical_notes"
_ROWS = [
    "2,5,Pneumonia/Viral/COVID-19,PA,X-ray,images,a.jpg,Later note.",
    "2,0,Pneumonia/Viral/COVID-19,AP Supine,X-ray,images,b.jpg,First note.",
    "3,,No Finding,L,X-ray,images,c.jpg,",
    "3,,Tuberculosis,PA,X-ray,images,d.jpg,Note.",
    "3,,COVID-19,Axial,CT,volumes,e.nii.gz,Note.",
    "3,,COVID-19,Coronal,X-ray,images,f.jpg,Note.",
    "4,x,COVID-19,AP Erect,X-ray,,g.jpg,Note.",
    "4,,todo,PA,X-ray,images,h.jpg,Note.",
]


@pytest.fixture
def write(tmp_path):
  def make(*rows, head=_HEAD):
    text = "\n".join([head, *_ROWS, *rows, ""])
    (tmp_path / "metadata.csv").write_bytes(text.encode(errors="surrogateescape"))
    return tmp_path

  return make


def _positive(study):
  return {name for name, i in INDEX.items() if study.labels[i] == 1}


def test_studies_of_the_set(write):
  folder = write()
  found = covid.studies(folder, folder).studies
  assert [s.study_id for s in found] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "g.jpg", "h.jpg"]
  assert [s.pictures[0].view for s in found] == ["frontal", "frontal", "lateral"] + ["frontal"] * 3
  assert found[0].split == found[1].split and found[0].patient_id == "2"
  assert found[0].prior().findings == "First note." and found[1].prior is None
  assert found[2].report is None and found[2].pictures[0].file == str(folder / "images" / "c.jpg")
  assert _positive(found[0]) == {"Pneumonia", "Lung Opacity"}
  assert _positive(found[2]) == {"No Finding"} and (found[3].labels == UNKNOWN).all()
  # An older name without a path, an offset that is no number, and no folder.
  assert _positive(found[4]) == {"Pneumonia", "Lung Opacity"} and found[4].prior is None
  assert found[4].pictures[0].file == str(folder / "g.jpg")
  assert (found[5].labels == UNKNOWN).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("P77,,ARDS,PA,X-ray,images,a.jpg,Secret.", "row 10 has the study id of .* row 2"),
        ("P77,,ARDS,PA,X-ray,../..,f.jpg,Secret.", "row 10 names a file outside"),
        ("P77,,ARDS,PA,X-ray,images,,Secret.", "row 10 has no 'filename'"),
        (",,ARDS,PA,X-ray,images,f.jpg,Secret.", "row 10 has no 'patientid'"),
        ("P77,,ARDS", "row 10 has too few cells"),
        ("P77,,ARDS,PA,X-ray,images,f.jpg,Secret \udce9.", "row 10 is not UTF-8"),
    ],
)
def test_a_bad_row_is_refused_and_the_rest_goes_on(write, assert_refused, row, message):
  folder = write(row)
  # The two rows of CT are skipped, and no rows of the account.
  assert_refused(covid.studies(folder, folder), message, 7, ("Secret", "P77"))


def test_a_missing_table_or_column_is_named(write, tmp_path):
  with pytest.raises(UserError, match=r"has no metadata\.csv"):
    covid.studies(tmp_path, tmp_path)
  folder = write(head=_HEAD.replace("view", "projection"))
  with pytest.raises(UserError, match="has no column 'view'"):
    covid.studies(folder, folder)


def test_the_real_set(shared):
  folder = shared / "data" / "covid"
  found = covid.studies(folder, folder)
  assert len(found.studies) == 145 and not found.refused
  assert sum(s.report is not None for s in found.studies) == 144
  views = [s.pictures[0].view for s in found.studies]
  assert (views.count("frontal"), views.count("lateral")) == (124, 21)
  assert found.studies[0].pictures[0].read(32).shape == (32, 32)
