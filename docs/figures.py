"""Draws docs/phantoms.jpg: generated radiographs, each with what it shows.

Run as: .venv/bin/python docs/figures.py
"""

import pathlib
import textwrap

from matplotlib.figure import Figure

from chexmix_jax.phantom import PhantomStudy, make_study
from chexmix_jax.phantom.findings import DEVICES, KINDS

SIZE = 256
COLUMNS = 6


def main() -> None:
  """One study for each kind of finding, the one that shows least beside it, and normal ones."""
  pool = [make_study(0, index, SIZE) for index in range(400)]
  pool.sort(key=lambda study: len(study.findings))
  chosen = [next(s for s in pool if any(f.kind == kind for f in s.findings)) for kind in KINDS]
  normal = [study for study in pool if not study.findings]
  studies = normal[: -len(chosen) % COLUMNS] + chosen
  rows = len(studies) // COLUMNS
  figure = Figure(figsize=(2 * COLUMNS, 2.3 * rows), layout="constrained")
  axes = figure.subplots(rows, COLUMNS)
  for axis, study in zip(axes.flat, studies, strict=True):
    axis.imshow(study.image, cmap="gray", vmin=0, vmax=255)
    axis.set_axis_off()
    axis.set_title(textwrap.fill(_caption(study), 34), fontsize=8, loc="left", y=-0.1, va="top")
  figure.savefig(pathlib.Path(__file__).with_name("phantoms.jpg"), dpi=100)


def _caption(study: PhantomStudy) -> str:
  """What was drawn, a finding after the other; "?" stands before one that is hedged."""
  found = []
  for finding in sorted(study.findings, key=lambda f: f.kind in DEVICES):
    words = [finding.severity, finding.side, finding.zone, finding.kind]
    found.append(("? " if finding.hedged else "") + " ".join(filter(None, words)))
  return ", ".join(found) or "normal"


if __name__ == "__main__":
  main()
