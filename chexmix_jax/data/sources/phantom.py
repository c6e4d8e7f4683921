"""Generated radiographs with their reports and labels."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from chexmix_jax import phantom
from chexmix_jax.data import images
from chexmix_jax.data.sources import source
from chexmix_jax.errors import UserError
from chexmix_jax.phantom.findings import KINDS


def studies(
    num_studies: int, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> source.Source:
  """The first `num_studies` generated studies of a seed, in the phantom's own splits.

  No findings but `kinds` appear; UserError for what is no kind of finding.
  """
  unknown = [kind for kind in kinds if kind not in KINDS]
  if unknown:
    raise UserError(f"{unknown[0]!r} is no finding of phantoms; use some of {', '.join(KINDS)}.")
  rows = []
  for index in range(num_studies):
    study_id, patient_id, split = phantom.identify(seed, index)
    _, report, labels = phantom.describe(seed, index, kinds)
    read = functools.partial(_picture, seed, index, kinds)
    rows.append(
        source.Row(
            study_id, patient_id, split, f"phantom {index}",
            pictures=(source.Picture("frontal", f"phantom {index}", read),),
            report=source.given_sections(findings=report),
            labels=labels,
        )
    )  # fmt: skip
  description: dict[str, Any] = {"source": "phantom", "num_studies": num_studies, "seed": seed}
  if set(kinds) != set(KINDS):
    description["kinds"] = sorted(kinds)
  return source.gather(description, rows, merge=False)


def _picture(seed: int, index: int, kinds: Sequence[str], size: int) -> np.ndarray:
  # Windowed as a PNG file is when it is read.
  return images.window(phantom.make_study(seed, index, size, kinds).image)

