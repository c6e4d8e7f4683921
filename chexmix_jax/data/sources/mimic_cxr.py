"""MIMIC-CXR-JPG with the reports of MIMIC-CXR (Johnson et al. 2019, arXiv 1901.07042)."""

import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import reports
from chexmix_jax.data.sources import files, source
from chexmix_jax.errors import BadRow

_LOOKED_AT = 20  # Patients, for a report.
_SPLITS = {"train": "train", "validate": "val", "test": "test"}
# Times have lost their leading zeros (81556.875 is 08:15:56), so they are compared as numbers.
_DATE, _TIME = re.compile(r"[0-9]{8}"), re.compile(r"[0-9]{1,6}(\.[0-9]*)?")


@dataclasses.dataclass
class _Known:
  """What rows of the split table are looked up in: folders, and the other tables by id."""

  image_root: pathlib.Path
  reports_root: pathlib.Path | None
  suffix: str
  images: dict[str, tuple[str, tuple[int, float] | None]]
  labels: dict[str, np.ndarray]
  sections: dict[str, source.ReadSections]


_Parse = Callable[[_Known, str, dict[str, str]], source.Row | None]


def studies(data_dir: pathlib.Path, image_root: pathlib.Path) -> source.Source:
  """Every study of the split table (`validate` is val) with all its images.

  Images are `files/p10/p…/s…/….jpg` in `image_root`, or .dcm where the first one found there is.
  Reports are `files/p10/p…/s….txt` in `data_dir` or in `mimic-cxr-reports` in it; they are read
  late, and a missing one is found then; where the first patients have none, the release is taken to
  be without reports. Of a study in `mimic_cxr_sectioned.csv`, findings and
  impression are taken from there, the last paragraph as the findings where both are empty; that
  table has no indications. Labels are those of the chexpert table. A patient's studies are ordered
  by date and time.

  Raises UserError for a missing table or column; an image without metadata is refused. Refused rows
  of the other tables are counted beside the rows of the split table.
  """
  tables = {
      name: files.find_file(data_dir, f"mimic-cxr-2.0.0-{name}.csv", "MIMIC-CXR-JPG")
      for name in ("metadata", "chexpert", "split")
  }
  for name in ("mimic_cxr_sectioned.csv.gz", "mimic_cxr_sectioned.csv"):
    if (data_dir / name).is_file():
      tables["sectioned"] = data_dir / name
  known = _Known(image_root, _reports_root(data_dir), _suffix(image_root), {}, {}, {})
  # The split table comes last, when the others are known.
  plan: list[tuple[str, _Parse, tuple[str, ...]]] = [
      ("metadata", _keep_image, ("dicom_id", "ViewPosition", "StudyDate", "StudyTime")),
      ("chexpert", _keep_labels, ("study_id", *labels_lib.CHEXPERT_14)),
      ("sectioned", _keep_sections, ("study", "findings", "impression", "last_paragraph")),
      ("split", _parse, ("dicom_id", "study_id", "subject_id", "split")),
  ]
  rows = itertools.chain.from_iterable(
      source.parse_rows(files.read_table(tables[name], columns), functools.partial(parse, known))
      for name, parse, columns in plan
      if name in tables
  )
  sums = {f"{name}_sha256": files.file_sha256(table) for name, table in tables.items()}
  return source.gather({"source": "mimic_cxr"} | sums, rows, merge=True)


def _reports_root(data_dir: pathlib.Path) -> pathlib.Path | None:
  extracted = data_dir / "mimic-cxr-reports"
  root = extracted if (extracted / "files").is_dir() else data_dir
  patients = itertools.islice(root.glob("files/p*/p*"), _LOOKED_AT)
  return root if any(any(patient.glob("s*.txt")) for patient in patients) else None


def _suffix(image_root: pathlib.Path) -> str:
  found = (path.suffix for path in image_root.glob("files/p*/p*/s*/*"))
  return next((suffix for suffix in found if suffix in (".jpg", ".dcm")), ".jpg")


def _new_id(known: dict[str, Any], row: dict[str, str], key: str, where: str) -> str:
  value = files.required(row, key, where)
  if value in known:
    raise BadRow("duplicate id", f"{where} has a {key!r} that stands before; remove one.")
  return value


def _keep_image(known: _Known, where: str, row: dict[str, str]) -> None:
  date, time = row["StudyDate"], row["StudyTime"]
  timed = _DATE.fullmatch(date) and _TIME.fullmatch(time)
  order = (int(date), float(time)) if timed else None
  view = source.view_of(row["ViewPosition"])
  known.images[_new_id(known.images, row, "dicom_id", where)] = view, order


def _keep_labels(known: _Known, where: str, row: dict[str, str]) -> None:
  labels = files.label_cells(row, where)
  known.labels[_new_id(known.labels, row, "study_id", where)] = labels


def _keep_sections(known: _Known, where: str, row: dict[str, str]) -> None:
  findings, impression = row["findings"].strip(), row["impression"].strip()
  if not (findings or impression):
    findings = row["last_paragraph"].strip()
  study = _new_id(known.sections, row, "study", where)
  known.sections[study] = source.given_sections(findings=findings, impression=impression)


def _parse(known: _Known, where: str, row: dict[str, str]) -> source.Row:
  image, subject, study = (
      files.required(row, key, where) for key in ("dicom_id", "subject_id", "study_id")
  )
  if row["split"] not in _SPLITS:
    raise BadRow(
        "no split", f"{where} has a 'split' other than {', '.join(_SPLITS)}; mend the cell."
    )
  if image not in known.images:
    raise BadRow("no metadata", f"{where}: the metadata table lacks its image; add a row there.")
  view, order = known.images[image]
  folder = f"files/p{subject[:2]}/p{subject}/s{study}"
  path = files.inside(known.image_root, f"{folder}/{image}{known.suffix}", where)
  read = None
  if known.reports_root is not None:
    read = functools.partial(_read_report, known.reports_root, f"{folder}.txt", where)
  return source.Row(
      study_id=f"s{study}",
      patient_id=subject,
      split=_SPLITS[row["split"]],
      where=where,
      pictures=(source.picture_file(view, path),),
      report=known.sections.get(f"s{study}", read),
      labels=known.labels.get(study),
      order=order,
  )


def _read_report(root: pathlib.Path, path: str, where: str) -> reports.Sections:
  try:
    text = files.inside(root, path, where).read_text(encoding="utf-8")
  except FileNotFoundError:
    sentence = f"{where}: its report is not on disk; fetch the file."
    raise BadRow("missing report", sentence) from None
  except UnicodeDecodeError:
    raise BadRow("encoding", f"{where}: its report is not UTF-8 text; save it as UTF-8.") from None
  except (OSError, ValueError):
    raise BadRow("unreadable report", f"{where}: its report cannot be read; mend it.") from None
  return reports.parse_sections(text)
