"""The quickstart's result: summary.json, and report.html as one file with its figures inside."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from chexmix_jax.data import studies
from chexmix_jax.data.masking import ModalityMaskConfig
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import figures, page, sections
from chexmix_jax.evaluation.summary import cells, summary_rows
from chexmix_jax.files import write_whole

if TYPE_CHECKING:  # It imports this module.
  from chexmix_jax.quickstart import QuickstartConfig

STAGES = {"stage1": "stage 1", "stage2": "stage 2"}
_NEEDED = ("classification", "inpainting", "generation", "retrieval")
_NUM_REPORTS = 10
_RESEARCH_ONLY = "Research only, not for clinical use."
_REAL_DATA = (
    "This page holds radiographs and report texts of the data set: pass it on only as the licence"
    " of the data set permits."
)


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
  mend = "delete its folder and run the quickstart again."
  results = {
      title: sections.read_found(output / "evaluation" / key, mend, _NEEDED)
      for key, title in STAGES.items()
  }
  lines = {title: _read_lines(output / key / "metrics.jsonl") for key, title in STAGES.items()}
  image_lines = _read_lines(output / "image_tokenizer.training" / "metrics.jsonl")
  summary = _summary(seed, results, lines, image_lines, seconds)
  parts = [
      page.paragraph(_RESEARCH_ONLY, "notice"),
      *_what_was_run(output, data, seed, config, results),
      *sections.figures_table(results),
      *sections.by_finding(results),
      *sections.classification(results),
      *sections.pictures(results),
      *sections.ways_to_inpaint(results),
      *_reports(output, results),
      *sections.retrieval(results),
      *_training(lines, image_lines),
      *_seconds(seconds),
      *sections.signatures(results),
      page.paragraph(f"chexmix_jax. {_RESEARCH_ONLY}", "soft"),
  ]
  write_whole(output / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
  write_whole(output / "report.html", page.document("CheXmix in JAX: quickstart", parts))
  print(_terminal_table(results))
  print(
      f"\n{output / 'report.html'} and {output / 'summary.json'} are written;"
      f" {summary['seconds/total'] / 60:.1f} minutes in all. {_RESEARCH_ONLY}"
  )


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
    results: sections.Results,
    lines: Mapping[str, Sequence[Mapping[str, float]]],
    image_lines: Sequence[Mapping[str, float]],
    seconds: Mapping[str, float],
) -> dict[str, float]:
  summary: dict[str, float] = {"seed": seed}
  for key, title in STAGES.items():
    for name, values in results[title].values.items():
      summary |= {f"{key}/{name}/{figure}": number for figure, number in values.items()}
    summary |= {f"{key}/train/{name}": number for name, number in lines[title][-1].items()}
  summary |= {f"image_tokenizer/{name}": number for name, number in image_lines[-1].items()}
  summary |= {f"seconds/{step}": number for step, number in seconds.items()}
  summary["seconds/total"] = round(sum(seconds.values()), 1)
  return {name: number for name, number in summary.items() if math.isfinite(number)}


def _terminal_table(results: sections.Results) -> str:
  values = [found.values for found in results.values()]
  groups = summary_rows(values[-1])
  width = max(len(row.caption) for rows in groups.values() for row in rows)
  titles = "  ".join(f"{title:>7}" for title in results)
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
    results: sections.Results,
) -> list[str]:
  kind, _, place = data.partition(":")
  network, model = config.image_tokenizer.model, config.stage1.model
  masks = config.stage2.data.masking
  splits = studies.read_card(output / "studies")["splits"]
  steps = [f"{title}, step {found.checkpoint_step}" for title, found in results.items()]
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












def _reports(output: pathlib.Path, results: sections.Results) -> list[str]:
  arrays = {title: found.arrays["generation"] for title, found in results.items()}
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




def _training(
    lines: Mapping[str, figures.Lines], image_lines: Sequence[Mapping[str, float]]
) -> list[str]:
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
