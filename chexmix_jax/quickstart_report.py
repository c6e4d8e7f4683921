"""The quickstart's result: summary.json, and report.html as one file with its figures inside."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from chexmix_jax.data import studies
from chexmix_jax.data.masking import ModalityMaskConfig
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import figures, page
from chexmix_jax.evaluation.summary import DIRECTIONS, Values, cells, mask_caption, summary_rows
from chexmix_jax.files import write_whole
from chexmix_jax.labels import INDEX

if TYPE_CHECKING:  # It imports this module.
  from chexmix_jax.quickstart import QuickstartConfig

STAGES = {"stage1": "stage 1", "stage2": "stage 2"}
EVALUATIONS = ("classification", "inpainting", "generation", "retrieval")
_NUM_REPORTS = 10
_NUM_PICTURES = 6  # Of each mask.
# Of the examples that the inpainting keeps.
_ORIGINAL, _MASKED, _FILLED, _CEILING = range(4)
_RESEARCH_ONLY = "Research only, not for clinical use."
_REAL_DATA = (
    "This page holds radiographs and report texts of the data set: pass it on only as the licence"
    " of the data set permits."
)


@dataclasses.dataclass(frozen=True)
class _Stage:
  """What one stage left behind: figures and arrays by evaluation, lines of its training."""

  values: Values
  arrays: Mapping[str, Mapping[str, np.ndarray]]
  lines: list[dict[str, float]]
  checkpoint_step: int


def write_quickstart_report(
    output: pathlib.Path,
    data: str,
    seed: int,
    config: QuickstartConfig,
    seconds: Mapping[str, float],
) -> None:
  """Writes summary.json and report.html from what the steps left in `output`; prints the table.

  `data` is the quickstart's --data, `seconds` what each step took. summary.json is flat: figure
  name -> number, such as `stage2/classification/auroc/mask=0.50`, baselines included, `seed`,
  `image_tokenizer/psnr`, `stage1/train/loss`, `seconds/stage 1` and `seconds/total`. Raises
  UserError that names a file which is missing or damaged.
  """
  stages = {key: _read_stage(output, key) for key in STAGES}
  image_lines = _read_lines(output / "image_tokenizer.training" / "metrics.jsonl")
  summary = _summary(seed, stages, image_lines, seconds)
  parts = [
      page.paragraph(_RESEARCH_ONLY, "notice"),
      *_what_was_run(output, data, seed, config, stages),
      *_figures_table(stages),
      *_classification(stages),
      *_pictures(stages),
      *_ways_to_inpaint(stages),
      *_reports(output, stages),
      *_retrieval(stages),
      *_training(stages, image_lines),
      *_seconds(seconds),
      page.paragraph(f"chexmix_jax. {_RESEARCH_ONLY}", "soft"),
  ]
  write_whole(output / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
  write_whole(output / "report.html", page.document("CheXmix in JAX: quickstart", parts))
  print(_terminal_table(stages))
  print(
      f"\n{output / 'report.html'} and {output / 'summary.json'} are written;"
      f" {summary['seconds/total'] / 60:.1f} minutes in all. {_RESEARCH_ONLY}"
  )


def _read_stage(output: pathlib.Path, key: str) -> _Stage:
  values, arrays, step = {}, {}, 0
  for name in EVALUATIONS:
    path = output / "evaluation" / key / f"{name}.json"
    found = _read(path, json.loads)
    values[name], step = found["values"], found["checkpoint_step"]
    try:
      with np.load(path.with_suffix(".npz")) as file:
        arrays[name] = dict(file)
    except (OSError, ValueError) as error:
      raise _missing(path.with_suffix(".npz")) from error
  return _Stage(values, arrays, _read_lines(output / key / "metrics.jsonl"), step)


def _read_lines(path: pathlib.Path) -> list[dict[str, float]]:
  lines = _read(path, lambda text: [json.loads(line) for line in text.splitlines()])
  if not lines:
    raise _missing(path)
  return lines


def _read(path: pathlib.Path, parse: Callable[[str], Any]) -> Any:
  try:
    return parse(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise _missing(path) from error


def _missing(path: pathlib.Path) -> UserError:
  return UserError(f"{path} is missing or damaged; delete its folder and run the quickstart again.")


def _summary(
    seed: int,
    stages: Mapping[str, _Stage],
    image_lines: Sequence[Mapping[str, float]],
    seconds: Mapping[str, float],
) -> dict[str, float]:
  summary: dict[str, float] = {"seed": seed}
  for key, stage in stages.items():
    for name, values in stage.values.items():
      summary |= {f"{key}/{name}/{figure}": number for figure, number in values.items()}
    summary |= {f"{key}/train/{name}": number for name, number in stage.lines[-1].items()}
  summary |= {f"image_tokenizer/{name}": number for name, number in image_lines[-1].items()}
  summary |= {f"seconds/{step}": number for step, number in seconds.items()}
  summary["seconds/total"] = round(sum(seconds.values()), 1)
  return {name: number for name, number in summary.items() if math.isfinite(number)}


def _terminal_table(stages: Mapping[str, _Stage]) -> str:
  values = [stage.values for stage in stages.values()]
  groups = summary_rows(values[-1])
  width = max(len(row.caption) for rows in groups.values() for row in rows)
  titles = "  ".join(f"{title:>7}" for title in STAGES.values())
  lines = [f"{'':{width}}  {titles}  baselines"]
  for heading, rows in groups.items():
    lines += ["", heading] if rows else []
    for row in rows:
      numbers, _, baselines = cells(row, values)
      columns = "  ".join(f"{number:>7}" for number in numbers)
      lines.append(f"{row.caption:{width}}  {columns}  {baselines}".rstrip())
  return "\n".join(lines)


def _what_was_run(
    output: pathlib.Path,
    data: str,
    seed: int,
    config: QuickstartConfig,
    stages: Mapping[str, _Stage],
) -> list[str]:
  kind, _, place = data.partition(":")
  network, model = config.image_tokenizer.model, config.stage1.model
  masks = config.stage2.data.masking
  splits = studies.read_card(output / "studies")["splits"]
  steps = [f"{title}, step {stages[key].checkpoint_step}" for key, title in STAGES.items()]
  rows = [
      ("Data", f"{kind}: {pathlib.PurePath(place).name}" if place else kind),
      ("Studies", ", ".join(f"{number:,} {name}" for name, number in splits.items())),
      ("Pictures", f"{config.size} x {config.size} pixels, {network.grid[0]} x {network.grid[1]}"
                   f" codes out of {network.num_codes}"),
      ("Transformer", f"{model.num_layers} layers, width {model.width}, {model.num_heads} heads;"
                      f" {config.text_vocab_size} text tokens"),
      ("Masked in stage 2", f"images: {_mask_text(masks.image)}; texts: {_mask_text(masks.text)}"),
      ("Checkpoints", "; ".join(steps)),
      ("Seed", str(seed)),
      ("Run with", f"jax {jax.__version__} on {jax.devices()[0].device_kind}"),
  ]  # fmt: skip
  parts = [page.heading("What was run"), page.table(("", ""), rows)]
  return parts if kind == "phantom" else [*parts, page.paragraph(_REAL_DATA, "notice")]


def _mask_text(masking: ModalityMaskConfig) -> str:
  return f"{masking.prob:.0%} of them, {masking.low:.0%} to {masking.high:.0%} hidden"


def _figures_table(stages: Mapping[str, _Stage]) -> list[str]:
  values = [stage.values for stage in stages.values()]
  lines: list[tuple[str, ...]] = []
  bold: list[int | None] = []
  for heading, rows in summary_rows(values[-1]).items():
    if rows:
      lines.append((heading,))
      bold.append(None)
    for row in rows:
      numbers, best, baselines = cells(row, values)
      lines.append((row.caption, *numbers, baselines))
      bold.append(None if best is None else 1 + best)
  return [
      page.heading("Figures on the test split"),
      page.paragraph(
          "Median ranks are better when lower, everything else when higher; the better stage is"
          " bold. Layers, ways to fill and scores were chosen on the validation split.",
          "soft",
      ),
      page.table(("", *STAGES.values(), "baselines"), lines, (1, 2), bold),
      *_by_finding(stages),
  ]


def _by_finding(stages: Mapping[str, _Stage]) -> list[str]:
  columns = {
      f"{caption}, {title}": {
          figure.removeprefix(prefix): number
          for figure, number in stages[key].values[evaluation].items()
          if figure.startswith(prefix) and figure.removeprefix(prefix) in INDEX
      }
      for caption, evaluation, prefix in (
          ("AUROC", "classification", "auroc/mask=0.00/"),
          ("F1 of reports", "generation", "finding_f1/"),
      )
      for key, title in STAGES.items()
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


def _classification(stages: Mapping[str, _Stage]) -> list[str]:
  arrays = {title: stages[key].arrays["classification"] for key, title in STAGES.items()}
  title = page.heading("Classification by layer and share of the image hidden")
  if not all("auroc" in found for found in arrays.values()):
    return [title, page.paragraph("No finding had enough cases to be scored.", "soft")]
  last = arrays[STAGES["stage2"]]
  ratios, every = last["mask_ratios"], np.arange(len(last["mask_ratios"]))
  by_layer = {name: found["auroc"].mean(-1) for name, found in arrays.items()}
  chosen = {name: by_layer[name][every, found["layer"]] for name, found in arrays.items()}
  by_layer[figures.UNTRAINED] = last["random_init/auroc"].mean(-1)
  chosen[figures.UNTRAINED] = by_layer[figures.UNTRAINED][every, last["random_init/layer"]]
  return [
      title,
      page.paragraph(
          "Mean AUROC of linear probes on the mean hidden state of the image, over"
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
  ]


def _pictures(stages: Mapping[str, _Stage]) -> list[str]:
  parts = [
      page.heading("Pictures"),
      page.paragraph(
          f"The first {_NUM_PICTURES} test studies. Hidden cells are grey; each stage fills them"
          " with the codes that it finds most likely, and the image tokenizer draws the whole"
          " picture from codes. The model reads from top to bottom: where the top is hidden, it"
          " has seen nothing yet when it fills that in.",
          "soft",
      ),
  ]
  found = [stages[key].arrays["inpainting"] for key in STAGES]
  masks = [key for key in found[0] if key.endswith("/mask=0.50")]
  titles = ("original", "tokenizer", "masked", *STAGES.values())
  for mask in masks:
    first, second = (examples[mask][:_NUM_PICTURES] for examples in found)
    rows = [
        (a[_ORIGINAL], a[_CEILING], a[_MASKED], a[_FILLED], b[_FILLED])
        for a, b in zip(first, second, strict=True)
    ]
    parts += [page.heading(f"Hidden: {mask_caption(mask)}", 3), page.strips(titles, rows)]
  return parts


def _ways_to_inpaint(stages: Mapping[str, _Stage]) -> list[str]:
  """Masked PSNR of each way by mask; a star marks the way that the validation split preferred."""
  found = {title: stages[key].values["inpainting"] for key, title in STAGES.items()}
  chosen = {title: str(stages[key].arrays["inpainting"]["way"]) for key, title in STAGES.items()}
  summary = summary_rows(stages["stage2"].values).values()
  masks = [row.figure for rows in summary for row in rows if row.evaluation == "inpainting"]
  prefix = f"{masks[0]}/"
  names = found[STAGES["stage2"]]
  ways = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
  columns = [(title, way) for way in ways for title in STAGES.values()]
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


def _reports(output: pathlib.Path, stages: Mapping[str, _Stage]) -> list[str]:
  arrays = {title: stages[key].arrays["generation"] for key, title in STAGES.items()}
  found = arrays[STAGES["stage2"]]
  source = studies.open_studies(output / "studies", "test", need=("pictures", "report"))
  rows = []
  for number in range(min(_NUM_REPORTS, len(found["study_ids"]))):
    record = source[number]  # Reports are generated from the split's first study on.
    if record["study_id"] != str(found["study_ids"][number]):
      raise UserError(
          f"{output / 'evaluation'} is of other studies; delete it and run the quickstart again."
      )
    texts = [found["references"], *(arrays[title]["generated"] for title in arrays)]
    rows.append((record["pictures"][0], [str(text[number]) for text in texts]))
  head = ("picture", "report", *(f"generated, {title}" for title in arrays))
  return [
      page.heading("Generated reports"),
      page.paragraph(f"The first {len(rows)} test studies, not selected; greedy decoding.", "soft"),
      page.study_table(head, rows),
  ]


def _retrieval(stages: Mapping[str, _Stage]) -> list[str]:
  """R@5 of every score; a star marks what the validation pool preferred."""
  columns = {
      f"{caption}, {title}": (stages[key], direction)
      for direction, caption in DIRECTIONS.items()
      for key, title in STAGES.items()
  }
  prefix = "image_to_report/recall@5/"
  last = stages["stage2"].values["retrieval"]
  scores = [figure.removeprefix(prefix) for figure in last if figure.startswith(prefix)]

  def cell(stage: _Stage, direction: str, score: str) -> str:
    star = "*" if str(stage.arrays["retrieval"][f"{direction}/score"]) == score else ""
    return f"{star}{stage.values['retrieval'][f'{direction}/recall@5/{score}']:.3f}"

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


def _training(
    stages: Mapping[str, _Stage], image_lines: Sequence[Mapping[str, float]]
) -> list[str]:
  lines = {title: stages[key].lines for key, title in STAGES.items()}
  return [
      page.heading("Training"),
      page.paragraph(
          "Stage 2 goes on from stage 1 (dotted line) with masked inputs, so its losses start"
          " higher.",
          "soft",
      ),
      page.figure(
          figures.training_curves(lines, image_lines), "Losses and codebook over the steps", True
      ),
  ]


def _seconds(seconds: Mapping[str, float]) -> list[str]:
  rows = [(step, f"{number:.0f}") for step, number in seconds.items()]
  rows.append(("all steps", f"{sum(seconds.values()):.0f}"))
  head = ("step", "seconds")
  return [page.heading("Seconds"), page.table(head, rows, (1,), css="narrow")]
