"""All scores of generated texts against references that need nothing but the texts."""

from collections.abc import Callable, Sequence

import numpy as np

from chexmix_jax.metrics import bleu, bootstrap, cider, findings, rouge, rouge_l
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.metrics.words import DEFAULT_RULE


def report_figures(
    references: Sequence[str], generated: Sequence[str], by_finding: bool = True
) -> dict[str, Figure]:
  """Of N generated reports in the order of their references, one each.

    those of text_figures
    finding_…, side_accuracy, …         see chexmix_jax.metrics.findings

  Raises UserError where a text is missing.
  """
  figures = text_figures(references, generated)
  return figures | findings.finding_figures(references, generated, by_finding)


def text_figures(references: Sequence[str], generated: Sequence[str]) -> dict[str, Figure]:
  """Of N generated texts of any kind, in the order of their references, one each.

    bleu_1 … bleu_4, rouge_l, cider     as in pycocoevalcap
    rouge1_f1, rouge2_f1, rougeL_f1     as in rouge-score
    exact_match                         texts equal to the reference

  The document frequencies of CIDEr are those of all references, in samples too. Raises UserError
  where a text is missing.
  """
  sums_NS = bleu.bleu_sums(generated, references)
  figures = {
      f"bleu_{order + 1}": bootstrap.of_sums(sums_NS, _order(order)) for order in range(4)
  }
  figures["rouge_l"] = bootstrap.mean(rouge_l.rouge_l(generated, references))
  figures["cider"] = bootstrap.mean(cider.cider(generated, references))
  for name, values_N in rouge.rouge(generated, references).items():
    if name.endswith("f1"):
      figures[name] = bootstrap.mean(values_N)
  equal_N = np.array([a == b for a, b in zip(references, generated, strict=True)])
  figures["exact_match"] = bootstrap.mean(equal_N)
  return figures


def _order(order: int) -> Callable[[np.ndarray], np.ndarray]:
  return lambda sums_RS: bleu.bleu_from_sums(sums_RS)[:, order]


def report_options() -> dict[str, str]:
  """What a signature has to say of the scores of reports."""
  return text_options() | {"findings": f"{findings.LABELER},uncertain as negative"}


def text_options() -> dict[str, str]:
  """What a signature has to say of the scores of texts."""
  return {
      "bleu,rouge_l,cider": f"as pycocoevalcap 1.2,words {DEFAULT_RULE}",
      "rouge1,rouge2,rougeL": "as rouge-score 0.1.2,no stemmer",
  }
