"""Findings that generated reports name, against those of the references, by chexmix_jax.labeler.

Shape suffixes: N reports, F findings, R samples of the reports.
"""

from collections.abc import Callable, Sequence

import numpy as np

from chexmix_jax.labeler import find_mentions, label_report
from chexmix_jax.labels import CHEXPERT_5, CHEXPERT_14, INDEX, POSITIVE, UNCERTAIN
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure

FINDINGS = tuple(name for name in CHEXPERT_14 if name != "No Finding")
"""The findings that are scored."""

LABELER = "chexmix_jax rules"
"""Named in signatures."""

_COLUMNS = [INDEX[name] for name in FINDINGS]
_FIVE = [FINDINGS.index(name) for name in CHEXPERT_5]


def read_findings(texts: Sequence[str]) -> np.ndarray:
  """Values of chexmix_jax.labels, int8 (N, F), of FINDINGS."""
  of_text = {text: label_report(text)[_COLUMNS] for text in set(texts)}
  return np.stack([of_text[text] for text in texts])


def finding_figures(
    references: Sequence[str], generated: Sequence[str], by_finding: bool = True
) -> dict[str, Figure]:
  """Scores of generated reports in the order of their references.

    finding_{precision,recall,f1}_micro   over all pairs of a report and one of FINDINGS
    finding_{precision,recall,f1}_macro   mean over the findings that some reference has
    …_micro_5, …_macro_5                  the same over CHEXPERT_5
    …/uncertain_positive                  the same where what is uncertain counts as positive; else
                                          it counts as negative
    finding_f1/FINDING                    one of those that some reference has
    hallucinated, missed                  findings a report that only it, or only the reference, has
    side_accuracy                         right sides of the findings that are positive in both and
                                          whose reference names one; no side named is wrong

  A ratio of nothing to nothing is 0, but side_accuracy is then undefined.
  """
  true, predicted = read_findings(references), read_findings(generated)
  figures: dict[str, Figure] = {}
  for suffix, values in (("", (POSITIVE,)), ("/uncertain_positive", (POSITIVE, UNCERTAIN))):
    true_NF, predicted_NF = np.isin(true, values), np.isin(predicted, values)
    for group, columns in (("", list(range(len(FINDINGS)))), ("_5", _FIVE)):
      found = _precision_recall_f1(true_NF[:, columns], predicted_NF[:, columns])
      figures |= {f"finding_{name}{group}{suffix}": figure for name, figure in found.items()}
  true_NF, predicted_NF = true == POSITIVE, predicted == POSITIVE
  if by_finding:
    for f in np.flatnonzero(true_NF.any(0)):
      found = _precision_recall_f1(true_NF[:, [f]], predicted_NF[:, [f]])
      figures[f"finding_f1/{FINDINGS[f]}"] = found["f1_micro"]
  figures["hallucinated"] = bootstrap.mean((predicted_NF & ~true_NF).sum(1))
  figures["missed"] = bootstrap.mean((true_NF & ~predicted_NF).sum(1))
  right_N, count_N = side_agreement(references, generated, true_NF & predicted_NF)
  figures["side_accuracy"] = bootstrap.ratio(right_N, count_N)
  return figures


def _precision_recall_f1(true_NF: np.ndarray, predicted_NF: np.ndarray) -> dict[str, Figure]:
  """`precision_micro` and so on."""
  count = true_NF.shape[1]
  sums = np.concatenate([true_NF & predicted_NF, true_NF, predicted_NF], axis=1)
  scored_F = true_NF.any(0)

  def figure(part: Callable, is_macro: bool) -> Figure:
    def function(sums_RK):
      hits_RF, true_RF, predicted_RF = np.split(sums_RK, [count, 2 * count], axis=1)
      if is_macro:
        scores_RF = part(hits_RF, true_RF, predicted_RF)[:, scored_F]
        return scores_RF.sum(1) / max(scored_F.sum(), 1)
      return part(hits_RF.sum(1), true_RF.sum(1), predicted_RF.sum(1))

    return bootstrap.of_sums(sums, function)

  parts = {
      "precision": lambda hits, true, predicted: hits / np.maximum(predicted, 1),
      "recall": lambda hits, true, predicted: hits / np.maximum(true, 1),
      "f1": lambda hits, true, predicted: 2 * hits / np.maximum(true + predicted, 1),
  }
  return {
      f"{name}_{mean}": figure(part, mean == "macro")
      for mean in ("micro", "macro")
      for name, part in parts.items()
  }


def side_agreement(
    references: Sequence[str], generated: Sequence[str], both_NF: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Right sides (N,), and how many there are to get right (N,), of findings positive in both."""
  right_N, count_N = np.zeros((2, len(references)), np.int64)
  for n, (reference, text) in enumerate(zip(references, generated, strict=True)):
    if both_NF[n].any():
      true, named = _sides(reference), _sides(text)
      for f in np.flatnonzero(both_NF[n]):
        if side := true.get(FINDINGS[f]):
          count_N[n] += 1
          right_N[n] += named.get(FINDINGS[f]) == side
  return right_N, count_N


def _sides(text: str) -> dict[str, str]:
  """Finding -> side of its positive mentions, where they name one; both sides are bilateral."""
  sides: dict[str, str] = {}
  for mention in find_mentions(text):
    if mention.value == POSITIVE and mention.side:
      before = sides.get(mention.finding, mention.side)
      sides[mention.finding] = mention.side if before == mention.side else "bilateral"
  return sides
