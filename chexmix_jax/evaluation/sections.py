"""Parts of an HTML page that show results of several checkpoints side by side."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import figures, page
from chexmix_jax.evaluation.summary import (
    DIRECTIONS,
    EVALUATIONS,
    Row,
    Values,
    cells,
    mask_caption,
    summary_rows,
)
from chexmix_jax.metrics.bootstrap import Difference, paired_difference

NUM_PICTURES = 6  # Of each mask.
# Of the examples that the inpainting keeps.
_ORIGINAL, _MASKED, _FILLED, _CEILING = range(4)


@dataclasses.dataclass(frozen=True)
class Found:
  """What the evaluations of one checkpoint left behind, by evaluation.

  Attributes:
    values: figure -> number.
    intervals: figure -> low and high.
    arrays: name -> array.
    samples: fingerprint of the samples, and figure -> its replicates (R,).
    signatures: texts.
    checkpoint_step: of the checkpoint.
  """

  values: Values
  intervals: Mapping[str, Mapping[str, Sequence[float]]]
  arrays: Mapping[str, Mapping[str, np.ndarray]]
  samples: Mapping[str, tuple[str, Mapping[str, np.ndarray]]]
  signatures: Mapping[str, str]
  checkpoint_step: int


def read_found(folder: pathlib.Path, mend: str, need: Sequence[str] = ()) -> Found:
  """What `evaluate` wrote; UserError that names a file which is damaged, or missing though needed.

  `need` are evaluations that must be there; the sentence ends with `mend`.
  """
  results, arrays, samples = {}, {}, {}
  for name in EVALUATIONS:
    path = folder / f"{name}.json"
    if name not in need and not path.exists():
      continue
    try:
      results[name] = json.loads(path.read_text(encoding="utf-8"))
      path = folder / f"{name}.npz"
      with np.load(path) as file:
        arrays[name] = dict(file)
      path = folder / f"{name}.samples.npz"
      with np.load(path) as file:
        rows = zip(file["figures"].tolist(), file["replicates"], strict=True)
        samples[name] = str(file["fingerprint"]), dict(rows)
    except (OSError, ValueError, KeyError) as error:
      raise UserError(f"{path} is missing or damaged; {mend}") from error
  if not results:
    raise UserError(f"{folder} has no results of evaluate; {mend}")
  return Found(
      {name: found["values"] for name, found in results.items()},
      {name: found["intervals"] for name, found in results.items()},
      arrays,
      samples,
      {name: found["signature"] for name, found in results.items()},
      next(iter(results.values()))["checkpoint_step"],
  )


Results = Mapping[str, Found]
"""Title -> what was found, of one checkpoint or more."""


def difference(first: Found, second: Found, evaluation: str, figure: str) -> Difference | None:
  """The second minus the first, where both have the figure over the same samples."""
  nothing: tuple[str, Mapping[str, np.ndarray]] = ("", {})
  (one, ours), (other, theirs) = (
      found.samples.get(evaluation, nothing) for found in (first, second)
  )
  if one != other or figure not in ours or figure not in theirs:
    return None
  return paired_difference(ours[figure], theirs[figure])


def figures_table(results: Results) -> list[str]:
  """All figures of the summary with intervals; beside the first checkpoint paired differences."""
  found = list(results.values())
  values = [one.values for one in found]
  lines: list[tuple[str, ...]] = []
  bold: list[int | None] = []
  for heading, rows in summary_rows(values[-1]).items():
    if rows:
      lines.append((heading,))
      bold.append(None)
    for row in rows:
      numbers, best, baselines = cells(row, values)
      texts = [
          f"{number}{_interval(one, row)}" for number, one in zip(numbers, found, strict=True)
      ]
      differences = [_difference(found[0], other, row) for other in found[1:]]
      lines.append((row.caption, *texts, *differences, baselines))
      bold.append(None if best is None else 1 + best)
  titles = list(results)
  beside = [f"{title} – {titles[0]}" for title in titles[1:]]
  count = len(titles) + len(beside)
  return [
      page.heading("Figures on the scored split"),
      page.paragraph(
          "In brackets 95 % intervals of the bootstrap over patients; differences are paired, over"
          " the same samples. Median ranks are better when lower, everything else when higher; the"
          " best is bold. Layers, ways to fill and scores were chosen on the validation split.",
          "soft",
      ),
      page.table(("", *titles, *beside, "baselines"), lines, range(1, 1 + count), bold),
  ]


def _interval(found: Found, row: Row) -> str:
  ends = found.intervals.get(row.evaluation, {}).get(row.figure)
  return f" [{ends[0]:.{row.digits}f}, {ends[1]:.{row.digits}f}]" if ends else ""


def _difference(first: Found, other: Found, row: Row) -> str:
  found = difference(first, other, row.evaluation, row.figure)
  if found is None:
    return "–"
  digits = max(row.digits, 1)
  return f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}], p = {found.p:.3f}"


def signatures(results: Results) -> list[str]:
  """What to quote with the scores."""
  rows = [
      (title, text) for title, one in results.items() for text in one.signatures.values()
  ]
  return [
      page.heading("Signatures"),
      page.paragraph("The same name is not the same number: quote these with it.", "soft"),
      page.table(("", "signature"), rows),
  ]


def by_finding(results: Results) -> list[str]:
  """AUROC and F1 of each finding."""
  columns = {
      f"{caption}, {title}": {
          figure.removeprefix(prefix): number
          for figure, number in found.values.get(evaluation, {}).items()
          # What has a `=` is of a layer or of a share of the labels.
          if figure.startswith(prefix) and "=" not in figure.removeprefix(prefix)
      }
      for caption, evaluation, prefix in (
          ("AUROC", "classification", "auroc/mask=0.00/"),
          ("F1 of reports", "generation", "finding_f1/"),
      )
      for title, found in results.items()
  }
  findings = list(dict.fromkeys(name for column in columns.values() for name in column))
  rows = [
      (name, *(f"{column[name]:.3f}" if name in column else "–" for column in columns.values()))
      for name in findings
  ]
  if not rows:
    return []
  return [
      page.heading("By finding, nothing hidden", 3),
      page.table(("", *columns), rows, range(1, 1 + len(columns))),
  ]


def classification(results: Results) -> list[str]:
  """AUROC over mask ratios and layers."""
  arrays = _arrays(results, "classification")
  title = page.heading("Classification by layer and share of the image hidden")
  if not arrays:
    return []
  if not all("auroc" in found for found in arrays.values()):
    return [title, page.paragraph("No finding had enough cases to be scored.", "soft")]
  last = list(arrays.values())[-1]
  ratios, every = last["mask_ratios"], np.arange(len(last["mask_ratios"]))
  by_layer = {name: np.nanmean(found["auroc"], -1) for name, found in arrays.items()}
  chosen = {name: by_layer[name][every, found["layer"]] for name, found in arrays.items()}
  by_layer[figures.UNTRAINED] = np.nanmean(last["random_init/auroc"], -1)
  chosen[figures.UNTRAINED] = by_layer[figures.UNTRAINED][every, last["random_init/layer"]]
  return [
      title,
      page.paragraph(
          "Mean AUROC of linear probes on the hidden states of the image, over"
          f" {', '.join(map(str, last['findings']))}. Layer 0 is the token embedding; the dotted"
          " line is chance.",
          "soft",
      ),
      page.figure(
          figures.auroc_by_ratio(ratios, chosen), "AUROC at the chosen layer by share hidden"
      ),
      page.figure(
          figures.auroc_by_layer(ratios, by_layer), "AUROC by layer at each share hidden", True
      ),
      page.paragraph(
          f"Calibration with {ratios[0]:.0%} hidden: what the probes predict and what is there, in"
          " ten groups of equally many studies.",
          "soft",
      ),
      page.figure(_calibration(arrays), "Share of positives by predicted probability", True),
  ]


def _calibration(arrays: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
  findings = list(dict.fromkeys(str(f) for found in arrays.values() for f in found["findings"]))
  curves = {
      title: {
          finding: (found[f"{key}/predicted"], found[f"{key}/observed"])
          for finding in findings
          if f"{(key := f'calibration/{finding}')}/predicted" in found
      }
      for title, found in arrays.items()
  }
  return figures.calibration(findings, curves)


def pictures(results: Results) -> list[str]:
  """Examples of what was filled in where half is hidden."""
  arrays = _arrays(results, "inpainting")
  if not arrays:
    return []
  parts = [
      page.heading("Pictures"),
      page.paragraph(
          f"The first {NUM_PICTURES} studies. Hidden cells are grey; each checkpoint fills them"
          " with the codes that it finds most likely, and the image tokenizer draws the whole"
          " picture from codes. The model reads from top to bottom: where the top is hidden, it"
          " has seen nothing yet when it fills that in.",
          "soft",
      ),
  ]
  titles = ("original", "tokenizer", "masked", *arrays)
  first = next(iter(arrays.values()))
  for mask in [key for key in first if key.endswith("/mask=0.50")]:
    rows = []
    for number, shown in enumerate(first[mask][:NUM_PICTURES]):
      filled = [found[mask][number][_FILLED] for found in arrays.values()]
      rows.append((shown[_ORIGINAL], shown[_CEILING], shown[_MASKED], *filled))
    parts += [page.heading(f"Hidden: {mask_caption(mask)}", 3), page.strips(titles, rows)]
  return parts


def ways_to_inpaint(results: Results) -> list[str]:
  """Masked PSNR of each way by mask; a star marks the way that the validation split preferred."""
  arrays = _arrays(results, "inpainting")
  if not arrays:
    return []
  found = {title: results[title].values["inpainting"] for title in arrays}
  chosen = {title: str(one["way"]) for title, one in arrays.items()}
  last = list(arrays)[-1]
  summary = summary_rows(results[last].values).values()
  masks = [row.figure for rows in summary for row in rows if row.evaluation == "inpainting"]
  prefix = f"{masks[0]}/"
  ways = [name.removeprefix(prefix) for name in found[last] if name.startswith(prefix)]
  columns = [(title, way) for way in ways for title in arrays]
  rows = [
      (
          mask_caption(mask),
          *(
              f"{'*' if chosen[title] == way else ''}{found[title][f'{mask}/{way}']:.1f}"
              for title, way in columns
          ),
      )
      for mask in masks
  ]
  head = ("hidden", *(f"{way.replace('_', ' ')}, {title}" for title, way in columns))
  return [
      page.heading("Ways to fill in, PSNR of the hidden part in dB", 3),
      page.paragraph(
          "Sequential reads what it has filled in as if it were seen, one pass fills in everything"
          " at once, iterative keeps the most certain codes in each of eight passes. A star marks"
          " the way that the validation pictures chose.",
          "soft",
      ),
      page.table(head, rows, numeric=range(1, len(head)), css="narrow"),
  ]


def retrieval(results: Results) -> list[str]:
  """R@5 of every score; a star marks what the validation pool preferred."""
  arrays = _arrays(results, "retrieval")
  if not arrays:
    return []
  columns = {
      f"{caption}, {title}": (results[title], direction)
      for direction, caption in DIRECTIONS.items()
      for title in arrays
  }
  prefix = "image_to_report/recall@5/"
  last = results[list(arrays)[-1]].values["retrieval"]
  scores = [figure.removeprefix(prefix) for figure in last if figure.startswith(prefix)]

  def cell(found: Found, direction: str, score: str) -> str:
    star = "*" if str(found.arrays["retrieval"][f"{direction}/score"]) == score else ""
    return f"{star}{found.values['retrieval'][f'{direction}/recall@5/{score}']:.3f}"

  rows = [
      (score.replace("_", " ").replace("/", ", "), *(cell(*c, score) for c in columns.values()))
      for score in scores
  ]
  return [
      page.heading("Retrieval, R@5 by score"),
      page.paragraph(
          "Cosine of mean hidden states, or the likelihood of the report after the image; pmi takes"
          " off alpha times that after a hidden image. A star marks the score that the validation"
          " pool chose. Reports that read the same count as the same.",
          "soft",
      ),
      page.table(("", *columns), rows, range(1, 1 + len(columns))),
  ]


def _arrays(results: Results, evaluation: str) -> dict[str, Mapping[str, np.ndarray]]:
  """Title -> arrays of an evaluation, of the checkpoints that have it."""
  return {
      title: found.arrays[evaluation]
      for title, found in results.items()
      if evaluation in found.arrays
  }
