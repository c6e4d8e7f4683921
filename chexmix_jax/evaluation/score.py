"""Scores of the reports of any system, from a file in the format of ReXrank.

That is a JSON object: case id -> entry with `section_findings`, `section_impression` and
`model_prediction`; what else an entry has is not read, but for `patient_id`, whose cases are then
drawn together for the intervals.
"""

import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from chexmix_jax.data.rexrank import read_cases
from chexmix_jax.errors import UserError
from chexmix_jax.labels import POSITIVE
from chexmix_jax.metrics.bootstrap import Resamples, interval
from chexmix_jax.metrics.findings import FINDINGS, read_findings
from chexmix_jax.metrics.model_based import model_based_figures
from chexmix_jax.metrics.reports import report_figures, report_options
from chexmix_jax.tokenizers.text import normalise

SECTIONS = ("findings", "impression")


def score_file(
    path: pathlib.Path, sections: Sequence[str] = ("findings",), samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
  """Scores of all cases that have a reference; for JSON.

  `sections` of the reference are joined. Returns signature, values and intervals (95 %, over
  patients where all entries name one, else over cases), `unavailable` (what other scores need to be
  computed), `left_out` (ids without a reference), `empty` (ids without a prediction, which are
  scored as empty reports), and by case the findings that are `missed` and `hallucinated`. Raises
  UserError for a file that is not of this form, by the entry.
  """
  for section in sections:
    if section not in SECTIONS:
      raise UserError(f"--reference holds {section!r}; use some of {', '.join(SECTIONS)}.")
  entries = _read(path)
  references = {
      case: normalise(" ".join(str(entry.get(f"section_{s}") or "") for s in sections))
      for case, entry in entries.items()
  }
  left_out = [case for case, text in references.items() if not text]
  cases = [case for case in entries if references[case]]
  if not cases:
    named = " and ".join(f"section_{section}" for section in sections)
    raise UserError(f"No entry of {path} has {named}; name other sections with --reference.")
  true = [references[case] for case in cases]
  generated = [normalise(str(entries[case]["model_prediction"])) for case in cases]
  patients = [entries[case].get("patient_id") for case in cases]
  by_patient = all(patient is not None for patient in patients)
  resamples = Resamples(tuple(map(str, patients if by_patient else cases)), samples, seed)
  figures = report_figures(true, generated)
  more, unavailable = model_based_figures(true, generated)
  figures |= more
  values = {name: resamples.value(figure) for name, figure in figures.items()}
  replicates = {
      name: resamples.replicates(figure)
      for name, figure in figures.items()
      if np.isfinite(values[name])
  }
  signature = {
      "chexmix_jax": importlib.metadata.version("chexmix-jax"),
      "evaluation": "score",
      **report_options(),
      "reference": "+".join(sections),
      "cases": len(cases),
      "interval": f"95%,{'patients' if by_patient else 'cases'},{samples}",
      "seed": seed,
  }
  return {
      "signature": "|".join(f"{key}:{value}" for key, value in signature.items()),
      "values": {name: values[name] for name in replicates},
      "intervals": {name: interval(sampled) for name, sampled in replicates.items()},
      "undefined": [name for name in values if name not in replicates],
      "unavailable": unavailable,
      "left_out": left_out,
      "empty": [case for case, text in zip(cases, generated, strict=True) if not text],
      "cases": _differences(cases, true, generated),
  }


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  entries = read_cases(path)
  for number, entry in enumerate(entries.values(), 1):
    if not isinstance(entry.get("model_prediction"), str):
      raise UserError(
          f"Entry {number} of {path} has no text model_prediction; add it, empty where nothing was"
          " written."
      )
  return entries


def _differences(
    cases: Sequence[str], references: Sequence[str], generated: Sequence[str]
) -> dict[str, dict[str, list[str]]]:
  """Case -> findings that only the reference, and only the prediction, has; of those with any."""
  true_NF, predicted_NF = (read_findings(texts) == POSITIVE for texts in (references, generated))
  found = {}
  for case, true_F, predicted_F in zip(cases, true_NF, predicted_NF, strict=True):
    missed = [FINDINGS[f] for f in np.flatnonzero(true_F & ~predicted_F)]
    hallucinated = [FINDINGS[f] for f in np.flatnonzero(predicted_F & ~true_F)]
    if missed or hallucinated:
      found[case] = {"missed": missed, "hallucinated": hallucinated}
  return found
