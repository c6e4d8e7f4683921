"""One HTML page that shows results of several checkpoints side by side."""

import pathlib
from collections.abc import Sequence

from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import page, sections
from chexmix_jax.files import check_place, write_whole

_RESEARCH_ONLY = "Research only, not for clinical use."
_MEND = "name folders that evaluate wrote, or evaluate again."


def write_comparison(
    results: Sequence[pathlib.Path], names: Sequence[str], output: pathlib.Path
) -> None:
  """Writes one HTML page of results side by side, with intervals and paired differences."""
  check_place(output)
  if len(names) != len(results) or len(set(names)) < len(names):
    raise UserError(
        f"There are {len(results)} results and {len(set(names))} different names; give each result"
        " a name of its own."
    )
  found = {
      name: sections.read_found(folder, _MEND) for name, folder in zip(names, results, strict=True)
  }
  steps = [(name, str(folder), str(found[name].checkpoint_step))
           for name, folder in zip(names, results, strict=True)]  # fmt: skip
  parts = [
      page.paragraph(_RESEARCH_ONLY, "notice"),
      page.table(("", "results", "checkpoint step"), steps, css="narrow"),
      *sections.figures_table(found),
      *sections.by_finding(found),
      *sections.classification(found),
      *sections.pictures(found),
      *sections.ways_to_inpaint(found),
      *sections.retrieval(found),
      *sections.signatures(found),
  ]
  write_whole(output, page.document("CheXmix in JAX: checkpoints compared", parts))
  print(f"{output} is written. {_RESEARCH_ONLY}")
