"""Reading one study; runs in a worker process, so it imports neither jax nor TFDS."""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import leaks, reports
from chexmix_jax.data.sources.source import VIEWS, ReadSections, Refusal, Study, stable_seed
from chexmix_jax.errors import BadRow, UserError
from chexmix_jax.labeler import label_report
from chexmix_jax.phantom import grammar


@dataclasses.dataclass(frozen=True)
class LoadOptions:
  """What becomes of a study.

  Attributes:
    size: side of the pictures in pixels.
    sections: of the report, in the order in which they make its text.
    min_report: characters; a shorter report counts as none.
    max_report: characters; a study with a longer one is refused.
    reports_from_labels: where there is no report, write one from the labels, in the language of the
      generated set.
  """

  size: int
  sections: tuple[str, ...] = ("findings", "impression")
  min_report: int = 1
  max_report: int = 20_000
  reports_from_labels: bool = False

  def __post_init__(self):
    if self.size < 1:
      raise UserError(f"size={self.size} must be a positive number of pixels.")
    for name in self.sections:
      if name not in reports.SECTIONS:
        raise UserError(f"{name!r} is no section; use some of {', '.join(reports.SECTIONS)}.")


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A study's record, or None, and what of it was refused.

  Attributes:
    hashes: of its pictures, see chexmix_jax.data.leaks.
  """

  record: dict[str, Any] | None
  refused: list[Refusal]
  hashes: list[str]


def load_study(study: Study, options: LoadOptions) -> Loaded:
  """Reads pictures and reports of a study.

  A picture that cannot be used is refused, and the study goes on without it. The study is refused
  where its report cannot be used, where none of its pictures can, and where it has neither.
  """
  refused, pictures, views, hashes = [], [], [], []
  for picture in study.pictures:
    try:
      pixels = picture.read(options.size)
      if pixels.min() == pixels.max():
        raise BadRow("constant image", f"The image {picture.file} is of one colour; leave it out.")
    except BadRow as error:
      refused.append(Refusal("picture", study.where, error.kind, str(error), picture.file))
      continue
    pictures.append(_png(pixels))
    views.append(VIEWS.index(picture.view))
    hashes.append(leaks.picture_hash(pixels))
  try:
    if study.pictures and not pictures:
      raise BadRow("no picture left", f"{study.where}: none of its images can be used.")
    sections, text = _report(study.report, study.where, options)
    prior = _report(study.prior, study.where, options)[1]
    labels = study.labels
    if labels is None:
      labels = np.full(len(labels_lib.CHEXPERT_14), labels_lib.UNKNOWN, np.int8)
      if text and sections.language == "en":  # The rules know no other.
        labels = label_report(text)
    elif not text and options.reports_from_labels:
      rng = np.random.default_rng(stable_seed(f"report:{study.study_id}"))
      text = grammar.report_from_labels(labels, rng)
    if not pictures and not text:
      raise BadRow("nothing to learn", f"{study.where} has neither an image nor a report.")
  except BadRow as error:
    refused.append(Refusal("study", study.where, error.kind, str(error)))
    # Its other pictures go with it.
    kept = len(study.pictures) - sum(refusal.level == "picture" for refusal in refused)
    refused += [Refusal("picture", study.where, "of a refused study", str(error))] * kept
    return Loaded(None, refused, [])
  record = {
      "study_id": study.study_id,
      "patient_id": study.patient_id,
      "pictures": pictures,
      "views": np.array(views, np.int8),
      "report": text,
      "prior": prior,
      "labels": np.asarray(labels, np.int8),
      **{name: reports.clean(getattr(sections, name)) for name in reports.SECTIONS},
      "question": study.question,
      "answer": study.answer,
      "language": sections.language,
  }
  return Loaded(record, refused, hashes)


def _report(
    read: ReadSections | None, where: str, options: LoadOptions
) -> tuple[reports.Sections, str]:
  """The sections of a report and its text, "" where that is too short."""
  sections = read() if read else reports.Sections()
  text = reports.compose(sections, options.sections)
  if len(text) > options.max_report:
    raise BadRow(
        "report too long",
        f"{where} has a report of {len(text):,} characters, more than"
        f" --max_report={options.max_report}; mend or remove it.",
    )
  return sections, text if len(text) >= options.min_report else ""


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  # Level 1 is several times faster than the default for a few per cent more bytes.
  Image.fromarray(pixels).save(buffer, "png", compress_level=1)
  return buffer.getvalue()
