"""The summary table of the four evaluations: which figures, beside which baselines."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from chexmix_jax.evaluation.figures import UNTRAINED

EVALUATIONS = ("classification", "zero_shot", "inpainting", "generation", "retrieval")
"""In the order in which they are shown."""

DIRECTIONS = {"image_to_report": "image to report", "report_to_image": "report to image"}
_METRICS = {
    "recall@1": "R@1", "recall@5": "R@5", "recall@10": "R@10", "median_rank": "median rank"
}  # fmt: skip

Values = Mapping[str, Mapping[str, float]]
"""Evaluation -> figure -> number, of one checkpoint."""


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the summary table; the baselines are figures of the same evaluation, by caption."""

  caption: str
  evaluation: str
  figure: str
  baselines: Mapping[str, str] = dataclasses.field(default_factory=dict)
  digits: int = 3
  is_lower_better: bool = False


def summary_rows(values: Values) -> dict[str, list[Row]]:
  """The summary table's lines by heading, of the figures that there are."""
  classification = [
      Row(
          f"{float(figure.split('=')[1]):.0%} of the image hidden", "classification", figure,
          {UNTRAINED: f"random_init/{figure}"},
      )
      for figure in values.get("classification", ())
      if re.fullmatch(r"auroc/mask=[\d.]+", figure)
  ]  # fmt: skip
  zero_shot = [Row("mean over the findings", "zero_shot", "auroc")]
  inpainting = [
      Row(
          f"{mask_caption(figure)} hidden", "inpainting", figure,
          {
              "mean fill": f"mean_fill/{figure}",
              "mean image": f"mean_image/{figure}",
              "tokenizer ceiling": f"tokenizer_ceiling/{figure}",
          },
          digits=1,
      )
      for figure in values.get("inpainting", ())
      if re.fullmatch(r"masked_psnr/\w+/mask=[\d.]+", figure)
  ]  # fmt: skip
  generation = [
      Row(
          caption, "generation", figure,
          {
              "most common report": f"most_common_report/{figure}",
              "most common with a finding": f"most_common_positive_report/{figure}",
          },
      )
      for figure, caption in {
          "finding_f1_micro": "F1 of the findings, micro",
          "finding_f1_macro": "F1 of the findings, macro",
          "side_accuracy": "side right, of true positives",
          "exact_match": "reports equal to the reference",
          "bleu_4": "BLEU-4",
          "rouge_l": "ROUGE-L",
          "cider": "CIDEr",
      }.items()
  ]  # fmt: skip
  retrieval = [
      Row(
          f"{caption}, {name}", "retrieval", f"{direction}/{metric}",
          {"chance": f"chance/{direction}/{metric}"},
          digits=0 if metric == "median_rank" else 3, is_lower_better=metric == "median_rank",
      )
      for direction, caption in DIRECTIONS.items()
      for metric, name in _METRICS.items()
  ]  # fmt: skip
  groups = {
      "Classification by frozen embeddings, AUROC": classification,
      "Classification by the likelihood of a sentence, AUROC": zero_shot,
      "Inpainting, PSNR of the hidden part in dB": inpainting,
      "Report generation": generation,
      f"Retrieval among {values.get('retrieval', {}).get('pool_size', 0):.0f} studies": retrieval,
  }
  return {
      heading: [row for row in rows if row.figure in values.get(row.evaluation, {})]
      for heading, rows in groups.items()
  }


def mask_caption(name: str) -> str:
  """`…/top/mask=0.50` as `top 50%`."""
  *_, shape, ratio = name.split("/")
  return f"{shape} {float(ratio.split('=')[1]):.0%}"


def cells(row: Row, values: Sequence[Values]) -> tuple[list[str], int | None, str]:
  """The numbers of checkpoints, which of them is the best (None in a tie), and the baselines.

  Baselines are taken from the last checkpoint; they are the same for all.
  """

  def text(number: float | None) -> str:
    return "–" if number is None else f"{number:.{row.digits}f}"

  numbers = [found.get(row.evaluation, {}).get(row.figure) for found in values]
  beside = values[-1][row.evaluation]
  baselines = ", ".join(
      f"{caption} {text(beside[figure])}"
      for caption, figure in row.baselines.items()
      if figure in beside
  )
  known = [number for number in numbers if number is not None]
  best = min(known) if row.is_lower_better else max(known)
  return list(map(text, numbers)), numbers.index(best) if len(set(known)) > 1 else None, baselines
