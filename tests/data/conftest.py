"""A small data set on disk, as users have it."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_annotation(tmp_path):
  """Writes an R2Gen annotation of grey images with one changed row; gives its path."""

  def write(number=3, **changes):
    (tmp_path / "images").mkdir(exist_ok=True)
    rows = []
    for i in range(number):
      pixels = np.random.default_rng(i).integers(0, 256, (20, 24), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
      # Two a patient; the last one, which is test, by itself.
      patient = f"p{i // 2}" if i < number - 1 else "q"
      rows.append({"id": f"{patient}_{i}", "image_path": [f"{i}.png"], "labels": ["Edema"],
                   "report": f"Report  number {i}.\n"})  # fmt: skip
    rows[-1] |= changes
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"train": rows[:-1], "val": [], "test": rows[-1:]}))
    return path

  return write
