"""Generated radiographs with their reports and labels."""

import functools

from chexmix_jax import phantom
from chexmix_jax.data import images
from chexmix_jax.data.sources import source


def studies(num_studies: int, seed: int) -> source.Source:
  """The first `num_studies` generated studies of a seed, in the phantom's own splits."""
  found = []
  for index in range(num_studies):
    study_id, patient_id, split = phantom.identify(seed, index)
    content = functools.partial(_content, seed, index)
    found.append(source.Study(study_id, patient_id, split, f"phantom {index}", content))
  description = {"source": "phantom", "num_studies": num_studies, "seed": seed}
  return source.Source(description, tuple(found))


def _content(seed: int, index: int, size: int) -> source.StudyContent:
  study = phantom.make_study(seed, index, size)
  # Windowed as a PNG file is when it is read.
  return source.StudyContent(images.window(study.image), study.report, study.labels)
