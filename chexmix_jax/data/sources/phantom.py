"""Generated radiographs with their reports and labels."""

import functools

import numpy as np

from chexmix_jax import phantom
from chexmix_jax.data import images
from chexmix_jax.data.sources import source


def studies(num_studies: int, seed: int) -> source.Source:
  """The first `num_studies` generated studies of a seed, in the phantom's own splits."""
  rows = []
  for index in range(num_studies):
    study_id, patient_id, split = phantom.identify(seed, index)
    _, report, labels = phantom.describe(seed, index)
    read = functools.partial(_picture, seed, index)
    rows.append(
        source.Row(
            study_id, patient_id, split, f"phantom {index}",
            pictures=(source.Picture("frontal", f"phantom {index}", read),),
            report=source.given_sections(findings=report),
            labels=labels,
        )
    )  # fmt: skip
  description = {"source": "phantom", "num_studies": num_studies, "seed": seed}
  return source.gather(description, rows, merge=False)


def _picture(seed: int, index: int, size: int) -> np.ndarray:
  # Windowed as a PNG file is when it is read.
  return images.window(phantom.make_study(seed, index, size).image)

