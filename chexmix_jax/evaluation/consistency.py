"""Findings that a probe reads from pictures: does filling a picture in keep them?

Shape suffixes: N pictures, T codes, L layers, F findings, S strengths, D width.
"""

from collections.abc import Callable

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import tokens
from chexmix_jax.evaluation.evaluator import Context
from chexmix_jax.inference.embeddings import embed_images
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.metrics.classification import auroc, auroc_figure
from chexmix_jax.models.transformer import Params
from chexmix_jax.training.probe import STRENGTHS, fit_probes

_MIN_CASES = 5


class Probes:
  """The studies that probes are fitted to and chosen by; the same for every checkpoint.

  `findings` are those of the ones given that have both values in training and validation;
  `targets_NF` the labels (`mixed`) of the first `number` studies of the scored split.
  """

  def __init__(
      self,
      context: Context,
      findings: tuple[str, ...],
      number: int,
      max_train: int,
      batch_size: int,
  ):
    self._context, self._batch_size = context, batch_size
    tables = {
        split: tokens.load_tokens(context.tokens, split, need=("pictures",))
        for split in ("train", "val", context.split)
    }
    take = {"train": slice(max_train), "val": slice(None), context.split: slice(number)}
    self._codes = {split: table.codes[take[split]] for split, table in tables.items()}
    columns = [labels_lib.INDEX[name] for name in findings]
    targets = {
        split: labels_lib.apply_policy(table.labels[take[split]], "mixed")[:, columns]
        for split, table in tables.items()
    }
    kept_F = labels_lib.have_both_kinds((targets["train"], targets["val"]), _MIN_CASES)
    self.findings = [name for name, kept in zip(findings, kept_F, strict=True) if kept]
    self._targets = {split: found_NF[:, kept_F] for split, found_NF in targets.items()}
    self.targets_NF = self._targets[context.split]

  def fit(self, params: Params) -> "Reader":
    """Probes on real, whole pictures; strength, layer and thresholds by validation."""
    train_NLD, val_NLD = (self._embed(params, self._codes[name]) for name in ("train", "val"))
    probes = fit_probes(train_NLD, self._targets["train"], STRENGTHS)
    scores_NLFS, positive_NF = probes.scores(val_NLD), self._targets["val"] > 0
    areas_LFS = auroc(scores_NLFS, positive_NF[:, None, :, None])
    strength_F = areas_LFS.max(0).argmax(-1)
    every = np.arange(len(self.findings))
    layer = int(areas_LFS[:, every, strength_F].mean(-1).argmax())
    chosen_NF = scores_NLFS[:, layer, every, strength_F]
    thresholds = [_youden(s, p) for s, p in zip(chosen_NF.T, positive_NF.T, strict=True)]

    def read(codes_NT: np.ndarray) -> np.ndarray:
      embedded_NLD = self._embed(params, codes_NT)
      return probes.scores(embedded_NLD)[:, layer, every, strength_F] - np.array(thresholds)

    return Reader(read, self.targets_NF)

  def _embed(self, params: Params, codes_NT: np.ndarray) -> np.ndarray:
    context = self._context
    return embed_images(
        context.model, context.vocabulary, params, context.vocabulary.codes_to_ids(codes_NT),
        self._batch_size, "inpainting, findings",
    )  # fmt: skip


class Reader:
  """Probes of one checkpoint; what they read is positive above 0, the threshold."""

  def __init__(self, read: Callable[[np.ndarray], np.ndarray], targets_NF: np.ndarray):
    self._read, self._targets_NF = read, targets_NF

  def scores(self, codes_NT: np.ndarray) -> np.ndarray:
    """Log-odds above the threshold of each finding, (N, F)."""
    return self._read(codes_NT)

  def figures(self, original_NF: np.ndarray, scores_NF: np.ndarray) -> dict[str, Figure]:
    """Of pictures, against the labels and against what is read from the originals.

      finding_auroc    against the labels, mean over the findings
      finding_kappa    Cohen's kappa of the decisions with those on the originals, over all findings
      finding_kept     share of the findings read in the originals that are still read
      finding_invented share of those not read there that now are
    """
    before_NF, now_NF = original_NF > 0, scores_NF > 0
    by_finding = [
        auroc_figure(scores, targets)
        for scores, targets in zip(scores_NF.T, self._targets_NF.T, strict=True)
    ]
    sums_N4 = np.stack(
        [(before_NF & now_NF).sum(1), before_NF.sum(1), now_NF.sum(1),
         np.full(len(now_NF), now_NF.shape[1])],
        axis=1,
    )  # fmt: skip
    return {
        "finding_auroc": bootstrap.average(by_finding),
        "finding_kappa": bootstrap.of_sums(sums_N4, _kappa),
        "finding_kept": bootstrap.ratio(sums_N4[:, 0], sums_N4[:, 1]),
        "finding_invented": bootstrap.ratio(
            sums_N4[:, 2] - sums_N4[:, 0], sums_N4[:, 3] - sums_N4[:, 1]
        ),
    }


def _kappa(sums_R4: np.ndarray) -> np.ndarray:
  """Cohen 1960; NaN where both always say the same one thing."""
  both, before, now, count = sums_R4.T
  agreed = (count - before - now + 2 * both) / count
  expected = (before * now + (count - before) * (count - now)) / count**2
  return np.divide(
      agreed - expected, 1 - expected, out=np.full(len(both), np.nan), where=expected < 1
  )


def _youden(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
  """The threshold with the most of sensitivity + specificity (Youden 1950), between two scores."""
  order = np.argsort(scores_N)
  is_positive = positive_N[order]
  below = np.cumsum(~is_positive) / max((~is_positive).sum(), 1)
  missed = np.cumsum(is_positive) / max(is_positive.sum(), 1)
  best = int(np.argmax(below[:-1] - missed[:-1]))
  return float(scores_N[order][best : best + 2].mean())
