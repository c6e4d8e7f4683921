"""The quickstart's result: summary.json, and report.html as one file with its figures inside."""

import base64
import html
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from chexmix_jax.data import studies

STAGES = ("stage1", "stage2")
EVALUATIONS = ("classification", "inpainting", "generation", "retrieval")
_NUM_REPORTS = 10
_ORIGINAL, _MASKED, _FILLED, _CEILING = range(4)  # Of the inpainting's examples.
_MASKS = ("random/mask=0.50", "top/mask=0.50", "bottom/mask=0.50")

# Caption, evaluation, figure, and its baselines by caption.
_ROWS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    *(
        (
            f"Probe AUROC, {ratio}% of the image hidden",
            "classification",
            f"auroc/mask={ratio / 100:.2f}",
            {"random initialisation": f"random_init/auroc/mask={ratio / 100:.2f}"},
        )
        for ratio in (0, 50, 75, 90)
    ),
    *(
        (
            f"Inpainting PSNR in the hidden part, dB, {caption}",
            "inpainting",
            f"masked_psnr/{mask}",
            {
                "mean fill": f"mean_fill/masked_psnr/{mask}",
                "mean image": f"mean_image/masked_psnr/{mask}",
                "tokenizer ceiling": f"tokenizer_ceiling/masked_psnr/{mask}",
            },
        )
        for caption, mask in zip(("random 50%", "top half", "bottom half"), _MASKS, strict=True)
    ),
    (
        "Report findings, F1 micro",
        "generation",
        "finding_f1_micro",
        {
            "most common report": "most_common_report/finding_f1_micro",
            "most common positive report": "most_common_positive_report/finding_f1_micro",
        },
    ),
    ("Side right, of true positives", "generation", "side_accuracy", {}),
    *(
        (
            f"Retrieval R@{k}, {caption}",
            "retrieval",
            f"{direction}/recall@{k}",
            {"chance": f"chance/{direction}/recall@{k}"},
        )
        for caption, direction in (
            ("image to report", "image_to_report"),
            ("report to image", "report_to_image"),
        )
        for k in (1, 5)
    ),
)

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2530;max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;
vertical-align:top;border-bottom:1px solid #dde3ea}th{font-weight:600}
.n{text-align:right;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}img{max-width:100%}.xray{width:8rem;image-rendering:auto;display:block}
.note{color:#5a6775}.warn{border-left:4px solid #b4442f;padding:.2rem .8rem;background:#fbf1ef}
"""


def write_quickstart_report(
    output: pathlib.Path, data: str, seed: int, config: Any, seconds: dict[str, float]
) -> None:
  """Writes summary.json and report.html from what the steps left in `output`; prints the table.

  `config` is the QuickstartConfig, `seconds` what each step took. summary.json is flat: figure name
  -> number, such as `stage2/classification/auroc/mask=0.50`.
  """
  values = {
      f"{stage}/{name}": json.loads((_folder(output, stage) / f"{name}.json").read_text())["values"]
      for stage in STAGES
      for name in EVALUATIONS
  }
  summary: dict[str, float] = {"seed": seed}
  for group, figures in values.items():
    summary |= {f"{group}/{figure}": number for figure, number in figures.items()}
  last = _metrics(output / "image_tokenizer.training")[-1]
  summary |= {f"image_tokenizer/{k}": last[k] for k in ("psnr", "perplexity", "usage")}
  for stage in STAGES:
    last = _metrics(output / stage)[-1]
    summary |= {f"{stage}/train/{k}": v for k, v in last.items() if k != "step"}
  summary |= {f"seconds/{step}": number for step, number in seconds.items()}
  summary["seconds/total"] = round(sum(seconds.values()), 1)
  _replace(output / "summary.json", json.dumps(summary, indent=2))

  rows = _table(values)
  _replace(output / "report.html", _page(output, data, seed, config, summary, rows))
  width = max(len(row[0]) for row in rows)
  print(f"{'':{width}}  stage 1  stage 2  beside it")
  for caption, first, second, beside in rows:
    print(f"{caption:{width}}  {first:>7}  {second:>7}  {beside}")
  print(f"{output / 'report.html'} and {output / 'summary.json'}: {summary['seconds/total']:.0f} s")


def _folder(output: pathlib.Path, stage: str) -> pathlib.Path:
  return output / "evaluation" / stage


def _metrics(run_dir: pathlib.Path) -> list[dict[str, float]]:
  return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _replace(path: pathlib.Path, text: str) -> None:
  partial = path.with_suffix(".partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)


def _table(values: dict[str, dict[str, float]]) -> list[tuple[str, str, str, str]]:
  """Caption, stage 1, stage 2 and baselines, of the figures that were scored."""
  rows = []
  for caption, evaluation, figure, baselines in _ROWS:
    first, second = (values[f"{stage}/{evaluation}"] for stage in STAGES)
    if figure in first or figure in second:
      beside = ", ".join(
          f"{name} {_number(second[key])}" for name, key in baselines.items() if key in second
      )
      rows.append((caption, _number(first.get(figure)), _number(second.get(figure)), beside))
  return rows


def _number(value: float | None) -> str:
  if value is None:
    return "–"
  return f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"


def _page(
    output: pathlib.Path,
    data: str,
    seed: int,
    config: Any,
    summary: dict[str, float],
    rows: list[tuple[str, str, str, str]],
) -> str:
  model = config.stage1.model
  grid = config.image_tokenizer.model.grid
  times = [
      (key.removeprefix("seconds/"), f"{number:.0f}")
      for key, number in summary.items()
      if key.startswith("seconds/")
  ]
  name = html.escape(data.split("/")[-1] if ":" not in data else data.partition(":")[0])
  parts = [
      "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
      "<meta name='viewport' content='width=device-width,initial-scale=1'>",
      f"<title>chexmix_jax quickstart</title><style>{_STYLE}</style></head><body>",
      "<h1>chexmix_jax quickstart</h1>",
      f"<p class='note'>Data: {name}; seed {seed}; pictures of {config.size} px as {grid[0]} × "
      f"{grid[1]} codes; transformer of {model.num_layers} layers, width {model.width}.</p>",
      "<p class='warn'>Research only, not for clinical use.</p>",
      "<h2>Figures on the test split</h2>",
      _html_table(("", "stage 1", "stage 2", "beside it"), rows, numeric=(1, 2)),
      "<h2>Classification: AUROC by layer and share of the image hidden</h2>",
      _image(_plot_auroc(output), "AUROC of each layer at each mask ratio, both stages"),
      "<h2>Inpainting</h2>",
      "<p class='note'>Columns: original, the image tokenizer's own reconstruction, what the model "
      "saw, filled in by stage 1 and by stage 2.</p>",
      *(
          f"<h3>{mask.replace('/mask=', ', share hidden ')}</h3>" + _image(figure, mask)
          for mask, figure in _plot_inpainting(output)
      ),
      "<h2>Generated reports, stage 2</h2>",
      _reports(output),
      "<h2>Training</h2>",
      _image(_plot_training(output), "Losses of both stages and of the image tokenizer"),
      "<h2>Seconds</h2>",
      _html_table(("step", "seconds"), times, numeric=(1,)),
      "</body></html>",
  ]
  return "\n".join(parts)


def _html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()
) -> str:
  def line(cells: Sequence[str], tag: str) -> str:
    return "".join(
        f"<{tag}{' class=n' if i in numeric else ''}>{html.escape(cell)}</{tag}>"
        for i, cell in enumerate(cells)
    )

  body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
  return f"<div class='wide'><table><tr>{line(head, 'th')}</tr>{body}</table></div>"


def _image(figure: Figure, description: str) -> str:
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  plt.close(figure)
  return _png(buffer.getvalue(), description)


def _png(data: bytes, description: str, css: str = "") -> str:
  encoded = base64.b64encode(data).decode()
  alt = html.escape(description, quote=True)
  return f"<img{css} alt='{alt}' src='data:image/png;base64,{encoded}'>"


def _reports(output: pathlib.Path) -> str:
  """Pictures with their true and their generated reports."""
  with np.load(_folder(output, "stage2") / "generation.npz") as found:
    ids, references, generated = (
        found[name][:_NUM_REPORTS] for name in ("study_ids", "references", "generated")
    )
  source = studies.open_studies(output / "studies", "test")
  pictures = {row["study_id"]: row["image"] for row in map(source.__getitem__, range(len(ids)))}
  rows = "".join(
      f"<tr><td>{_png(pictures[str(key)], 'radiograph', ' class=xray')}</td>"
      f"<td>{html.escape(str(reference))}</td><td>{html.escape(str(text))}</td></tr>"
      for key, reference, text in zip(ids, references, generated, strict=True)
  )
  head = "<tr><th>picture</th><th>report</th><th>generated</th></tr>"
  return f"<div class='wide'><table>{head}{rows}</table></div>"


def _plot_auroc(output: pathlib.Path) -> Figure:
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
  for axis, stage in zip(axes, STAGES, strict=True):
    with np.load(_folder(output, stage) / "classification.npz") as found:
      axis.set(title=stage.replace("stage", "stage "), xlabel="layer", ylabel="AUROC")
      if "auroc" not in found:
        continue
      ratios = found["mask_ratios"]
      colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(ratios)))
      for m, (ratio, colour) in enumerate(zip(ratios, colours, strict=True)):
        axis.plot(found["auroc"][m].mean(-1), color=colour, label=f"{ratio:.0%} hidden")
        axis.plot(found["random_init/auroc"][m].mean(-1), color=colour, linestyle=":")
    axis.axhline(0.5, color="0.7", linewidth=0.8)
  if axes[0].lines:
    axes[0].legend(fontsize=8, title="dotted: random init", title_fontsize=8)
  return figure


def _plot_inpainting(output: pathlib.Path) -> list[tuple[str, Figure]]:
  figures = []
  found = [np.load(_folder(output, stage) / "inpainting.npz") for stage in STAGES]
  for mask in _MASKS:
    first, second = (examples[f"examples/{mask}"] for examples in found)
    columns = [
        first[:, _ORIGINAL], first[:, _CEILING], first[:, _MASKED],
        first[:, _FILLED], second[:, _FILLED],
    ]  # fmt: skip
    shown = min(len(first), 6)
    # Two studies a row.
    tiles = [np.concatenate([column[i] for column in columns], axis=1) for i in range(shown)]
    gap = np.full((tiles[0].shape[0], 8), 255, np.uint8)
    lines = [
        np.concatenate([tiles[i], gap, tiles[i + 1]], axis=1) for i in range(0, shown - 1, 2)
    ] or tiles
    picture = np.concatenate(lines)
    figure = plt.figure(figsize=(11, 11 * picture.shape[0] / picture.shape[1]))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="lanczos")
    axis.axis("off")
    figures.append((mask, figure))
  for examples in found:
    examples.close()
  return figures


def _plot_training(output: pathlib.Path) -> Figure:
  figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
  for stage, colour in zip(STAGES, ("tab:blue", "tab:orange"), strict=True):
    lines = _metrics(output / stage)
    steps = [line["step"] for line in lines]
    for axis, key in zip(axes, ("text_nll", "image_nll"), strict=False):
      axis.plot(steps, [line[key] for line in lines], color=colour, label=stage)
      axis.set(title=key.replace("_nll", ", nats a token"), xlabel="step")
  lines = _metrics(output / "image_tokenizer.training")
  steps = [line["step"] for line in lines]
  axes[2].plot(steps, [line["psnr"] for line in lines], color="tab:green")
  axes[2].set(title="image tokenizer, PSNR in dB", xlabel="step")
  axes[0].legend(fontsize=8)
  return figure
