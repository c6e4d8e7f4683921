"""Classification of findings from frozen embeddings of pictures that are partly hidden.

Shape suffixes: M mask ratios, K label fractions, L layers, N studies, P their pictures, F findings,
S strengths, D width, T codes.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np
import scipy.special

from chexmix_jax import labels as labels_lib
from chexmix_jax.data.sources.files import file_sha256
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.attention_pooling import embed_by_attention, fit_queries
from chexmix_jax.evaluation.evaluator import Context, Result
from chexmix_jax.evaluation.labelled import Labelled, load_labelled
from chexmix_jax.inference.classify import log_odds
from chexmix_jax.inference.embeddings import Pooling, embed_images
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.metrics.classification import (
  auprc_figure,
  auroc,
  auroc_figure,
  brier_figure,
  calibration_curve,
)
from chexmix_jax.models.transformer import (
  Params,
  TransformerConfig,
  abstract_params,
  init_params,
)
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.parallel.sharding import param_shardings
from chexmix_jax.training.probe import STRENGTHS, fit_probes


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
  """What is hidden, and what is fitted.

  Attributes:
    method: a linear probe is fitted to frozen states, or the model's own classifier speaks, which
      was trained with it (TransformerConfig.classifier).
    mask_ratios: shares of each picture's codes that are hidden, in training and scored studies.
    findings: of CHEXPERT_14, or of `label_file`; the default are the five that the field scores.
    label_file: a CSV whose labels count instead of those of the records, see data/label_file.py.
    policy: what an uncertain label counts as, see chexmix_jax.labels.
    label_fractions: shares of the training studies that probes are fitted to; figures that do not
      name one are of the largest.
    pooling: of the hidden states: their mean over the image positions, that of the `eoi` behind
      them, which has seen all of the image, or a sum by learned attention (attention_pooling.py).
    aggregate: how the log-odds of a study's frontal pictures become one: the first picture's alone,
      their mean or the highest.
    strengths: of the probes' L2 penalty, to choose among by validation; ties go to the first.
    min_cases: positive and negative studies that a finding needs in every split.
    max_train: training studies the probes are fitted to, drawn by lot where there are more.
    batch_size: pictures in a forward pass.
  """

  method: Literal["probe", "classifier"] = "probe"
  mask_ratios: tuple[float, ...] = (0.0, 0.5, 0.75, 0.9)
  findings: tuple[str, ...] = labels_lib.CHEXPERT_5
  label_file: str = ""
  policy: labels_lib.Policy = "mixed"
  label_fractions: tuple[float, ...] = (1.0,)
  pooling: Literal["mean", "last", "attention"] = "mean"
  aggregate: Literal["first", "mean", "max"] = "mean"
  strengths: tuple[float, ...] = STRENGTHS
  min_cases: int = 5
  max_train: int = 600
  batch_size: int = 32

  def __post_init__(self):
    if not self.mask_ratios or min(self.mask_ratios) < 0 or max(self.mask_ratios) > 1:
      raise UserError(f"mask_ratios={self.mask_ratios} must be shares between 0 and 1.")
    if not self.label_fractions or not all(0 < part <= 1 for part in self.label_fractions):
      raise UserError(f"label_fractions={self.label_fractions} must be shares above 0, up to 1.")
    if self.method == "classifier" and self.label_fractions != (1.0,):
      raise UserError("label_fractions are of probes; leave them out for the model's classifier.")
    for name in self.findings:
      if not self.label_file and name not in labels_lib.INDEX:
        known = ", ".join(labels_lib.CHEXPERT_14)
        raise UserError(f"findings holds {name!r}; use some of {known}, or name a label_file.")
    if not self.strengths or min(self.strengths) <= 0:
      raise UserError(f"strengths={self.strengths} must be positive numbers.")


@dataclasses.dataclass(frozen=True)
class _Fits:
  """Probes at every mask ratio and label fraction, each at its best strength.

  AUROC is NaN for a finding of which the fitted studies have one value only.
  """

  test_MKLF: np.ndarray
  validation_MKLF: np.ndarray
  scores_MKNLF: np.ndarray

  @functools.cached_property
  def layer_MK(self) -> np.ndarray:
    """The layer of the best mean AUROC in validation."""
    means_MKL = np.nanmean(self.validation_MKLF, axis=-1)
    return np.where(np.isnan(means_MKL), -np.inf, means_MKL).argmax(-1)

  def scores_NF(self, m: int, k: int) -> np.ndarray:
    """Log-odds of the test studies at that layer; NaN where there is no probe."""
    return self.scores_MKNLF[m, k, :, self.layer_MK[m, k]]


class Classification:
  """AUROC of linear probes on every layer's hidden states of the image.

  Prompt, pooling and protocol: `boi · image · eoi`, image positions only; probes are fitted to
  training studies, their penalty and the layer are chosen on validation studies, test studies are
  scored. Study number i of every split is hidden in the same places, and what is hidden at a ratio
  stays hidden at larger ones. Values:

    auroc/mask=R/layer=K     mean over the findings
    auroc/mask=R             the same, at the layer of the best mean AUROC in validation
    auroc/mask=R/FINDING     a finding at that layer
    auprc/…, brier/…         average precision, and mean squared error of the probability, in the
                             same manner but for the layers
    …/labels=S               the same with a share S of the training studies, but for the largest
    random_init/auroc/mask=R baseline: the same of a model that was never trained, at its own layer
    num_findings             that have `min_cases` of both kinds in every split
    num_left_out             of the others, which are named
    num_train, num_test      studies

  With the method "classifier" the same figures, but for the layers, are of the classifier that was
  trained with the model. Chance is 0.5 for AUROC. Raises UserError where a split is missing, and
  where the model has no classifier of a finding.
  """

  def __init__(self, context: Context, config: ClassificationConfig = ClassificationConfig()):
    self._context = context
    self._config = config
    self._fractions = sorted(config.label_fractions, reverse=True)
    found = load_labelled(
        context, config.findings, config.policy, config.label_file, config.max_train,
        config.aggregate == "first",
    )  # fmt: skip
    kept_F = labels_lib.have_both_kinds([s.targets_NF for s in found.values()], config.min_cases)
    self._findings = [name for name, kept in zip(config.findings, kept_F, strict=True) if kept]
    if left_out := [name for name in config.findings if name not in self._findings]:
      print(
          f"classification: left out {', '.join(left_out)}, with fewer than {config.min_cases}"
          " positive or negative studies in a split"
      )
    self._splits = {
        name: dataclasses.replace(split, targets_NF=split.targets_NF[:, kept_F])
        for name, split in found.items()
    }

  def run(self, params: Params) -> Result:
    """Scores one checkpoint."""
    test, config = self._splits[self._context.split], self._config
    values: dict[str, float] = {
        "num_findings": len(self._findings),
        "num_left_out": len(config.findings) - len(self._findings),
        "num_train": len(self._splits["train"].numbers),
        "num_test": len(test.numbers),
    }
    options = {
        "policy": config.policy,
        "findings": ",".join(self._findings) or "none",
        "labels": _name_labels(config.label_file),
        "pooling": config.pooling,
        "aggregate": config.aggregate,
        "probe": "the model's own classifier"
        if config.method == "classifier"
        else "L2 logistic regression, strength and layer by validation",
    }
    if not self._findings:
      return Result(values, options=options)
    is_own = config.method == "classifier"
    fits = self._ask(params) if is_own else self._fit(params, "classification")
    baseline = self._random_init
    figures: dict[str, Figure] = {}
    for m, ratio in enumerate(config.mask_ratios):
      for k, fraction in enumerate(self._fractions):
        suffix = f"/labels={fraction:g}" if k else ""
        name = f"mask={ratio:.2f}{suffix}"
        figures |= self._figures(name, fits.scores_NF(m, k))
        if untrained := self._by_finding(auroc_figure, baseline.scores_NF(m, k)):
          figures[f"random_init/auroc/{name}"] = bootstrap.average(list(untrained.values()))
        for layer, auroc_F in enumerate(() if is_own else fits.test_MKLF[m, k]):
          values[f"auroc/{name}/layer={layer}"] = float(np.nanmean(auroc_F))
    return Result(values, self._artefacts(fits, baseline), figures, test.patient_ids, options)

  def _figures(self, name: str, scores_NF: np.ndarray) -> dict[str, Figure]:
    """Of the findings that have a probe, and their means."""
    makers = {
        "auroc": auroc_figure,
        "auprc": auprc_figure,
        "brier": lambda scores, targets: brier_figure(scipy.special.expit(scores), targets),
    }
    figures: dict[str, Figure] = {}
    for metric, make in makers.items():
      if found := self._by_finding(make, scores_NF):
        figures[f"{metric}/{name}"] = bootstrap.average(list(found.values()))
        figures |= {f"{metric}/{name}/{finding}": figure for finding, figure in found.items()}
    return figures

  def _by_finding(
      self, make: Callable[[np.ndarray, np.ndarray], Figure], scores_NF: np.ndarray
  ) -> dict[str, Figure]:
    """Finding -> figure, of those that have a probe."""
    targets_NF = self._splits[self._context.split].targets_NF
    return {
        finding: make(scores_NF[:, f], targets_NF[:, f])
        for f, finding in enumerate(self._findings)
        if np.isfinite(scores_NF[0, f])
    }

  def _artefacts(self, fits: _Fits, baseline: _Fits) -> dict[str, np.ndarray]:
    test = self._splits[self._context.split]
    every = range(len(self._config.mask_ratios))
    curves = {
        f"calibration/{finding}/{key}": values
        for f, finding in enumerate(self._findings)
        for key, values in calibration_curve(
            scipy.special.expit(fits.scores_NF(0, 0)[:, f]), test.targets_NF[:, f]
        ).items()
    }
    return {
        "findings": np.array(self._findings),
        "mask_ratios": np.array(self._config.mask_ratios),
        "study_ids": np.array(test.study_ids),
        "targets": test.targets_NF,
        "scores": np.stack([fits.scores_NF(m, 0) for m in every]),
        "auroc": fits.test_MKLF[:, 0],
        "validation_auroc": fits.validation_MKLF[:, 0],
        "layer": fits.layer_MK[:, 0],
        "random_init/auroc": baseline.test_MKLF[:, 0],
        "random_init/layer": baseline.layer_MK[:, 0],
        **curves,
    }

  @functools.cached_property
  def _random_init(self) -> _Fits:
    params = _init(self._context.model)(jax.random.key(self._context.seed))
    return self._fit(params, "random initialisation")

  def _ask(self, params: Params) -> _Fits:
    """The scores of the model's own classifier, as those of a single layer."""
    context, config = self._context, self._config
    named = context.model.classifier.findings if context.model.classifier else ()
    if unknown := [name for name in self._findings if name not in named]:
      known = ", ".join(named) or "none"
      raise UserError(
          f"classification.method=classifier: the model has no classifier of {unknown[0]!r}; it has"
          f" {known}. Ask for these findings, or use the method probe."
      )
    columns = [named.index(name) for name in self._findings]

    def scores(name: str, ratio: float) -> np.ndarray:
      split = self._splits[name]
      ids = split.hidden_ids(context, ratio)
      scores_PF = log_odds(
          context.model, context.vocabulary, params, ids, config.batch_size,
          f"classification, {ratio:.0%} hidden",
      )  # fmt: skip
      return self._of_studies(scores_PF, split)[:, columns]

    found = []
    for ratio in config.mask_ratios:
      by_split = {name: scores(name, ratio) for name in ("val", context.split)}
      areas = {
          name: _auroc_of_known(scores_NF[:, None, :, None], self._splits[name].targets_NF)[..., 0]
          for name, scores_NF in by_split.items()
      }
      found.append((areas[context.split], areas["val"], by_split[context.split][:, None]))
    return _Fits(*(np.stack(arrays)[:, None] for arrays in zip(*found, strict=True)))

  def _fit(self, params: Params, description: str) -> _Fits:
    found = [self._at_ratio(params, r, description) for r in self._config.mask_ratios]
    return _Fits(*(np.stack(arrays) for arrays in zip(*found, strict=True)))

  def _at_ratio(self, params: Params, ratio: float, description: str) -> list[np.ndarray]:
    """The fields of _Fits at one mask ratio."""
    names = ("train", "val", self._context.split)
    ids = [self._splits[name].hidden_ids(self._context, ratio) for name in names]
    description = f"{description}, {ratio:.0%} hidden"
    pooling = self._config.pooling
    if pooling == "attention":
      embedded = [self._attend(params, ids, part, description) for part in self._fractions]
    else:
      embedded = [self._embed(params, ids, pooling, description)] * len(self._fractions)
    parts = zip(self._fractions, embedded, strict=True)
    fits = [self._at_fraction(fraction, *arrays_PLD) for fraction, arrays_PLD in parts]
    return [np.stack(arrays) for arrays in zip(*fits, strict=True)]

  def _embed(
      self, params: Params, ids: Sequence[np.ndarray], pooling: Pooling, description: str
  ) -> list[np.ndarray]:
    """(P, L, D) of each split's token ids."""
    context, config = self._context, self._config
    embedded_PLD = embed_images(
        context.model, context.vocabulary, params, np.concatenate(ids), config.batch_size,
        description, pooling,
    )  # fmt: skip
    return _apart(embedded_PLD, ids)

  def _attend(
      self, params: Params, ids: Sequence[np.ndarray], fraction: float, description: str
  ) -> list[np.ndarray]:
    """The same, pooled by queries that are fitted to a share of the training studies."""
    context, train = self._context, self._splits["train"]
    kept = self._kept(fraction)
    shared = (context.model, context.vocabulary, params)
    queries_LD = fit_queries(
        *shared, ids[0][kept], train.targets_NF[kept], self._config.batch_size, context.seed,
        description,
    )  # fmt: skip
    embedded_PLD = embed_by_attention(
        *shared, queries_LD, np.concatenate(ids), self._config.batch_size, description
    )
    return _apart(embedded_PLD, ids)

  def _kept(self, fraction: float) -> np.ndarray:
    """Which training studies are in a share, bool (N,); smaller shares are part of larger ones."""
    lot = self._splits["train"].lot
    return np.argsort(np.argsort(lot)) < max(1, round(fraction * len(lot)))

  def _at_fraction(
      self, fraction: float, train_NLD: np.ndarray, val_PLD: np.ndarray, test_PLD: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    train, val, test = (self._splits[name] for name in ("train", "val", self._context.split))
    kept = self._kept(fraction)
    targets_NF = train.targets_NF[kept]
    has_both = np.all([(targets_NF == kind).any(0) for kind in (0, 1)], axis=0)
    num_layers, num_findings = train_NLD.shape[1], len(self._findings)
    test_LF, val_LF = np.full((2, num_layers, num_findings), np.nan)
    scores_NLF = np.full((len(test.numbers), num_layers, num_findings), np.nan, np.float32)
    if has_both.any():
      probes = fit_probes(train_NLD[kept], targets_NF[:, has_both], self._config.strengths)
      val_LFS = _auroc_of_known(
          self._of_studies(probes.scores(val_PLD), val), val.targets_NF[:, has_both]
      )
      strength_LF1 = val_LFS.argmax(-1)[..., None]
      val_LF[:, has_both] = np.take_along_axis(val_LFS, strength_LF1, -1)[..., 0]
      scores_NLFS = self._of_studies(probes.scores(test_PLD), test)
      scores_NLF[..., has_both] = np.take_along_axis(scores_NLFS, strength_LF1[None], -1)[..., 0]
      test_LF[:, has_both] = _auroc_of_known(
          scores_NLF[..., has_both, None], test.targets_NF[:, has_both]
      )[..., 0]
    return test_LF, val_LF, scores_NLF

  def _of_studies(self, scores_PX: np.ndarray, split: Labelled) -> np.ndarray:
    """One score for all pictures of a study, (N, ...)."""
    return (split.highest if self._config.aggregate == "max" else split.mean)(scores_PX)


def _apart(joined_PX: np.ndarray, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
  """What stands for each of the parts that were joined."""
  return np.split(joined_PX, np.cumsum([len(part) for part in parts])[:-1])


def _auroc_of_known(scores_NLFS: np.ndarray, targets_NF: np.ndarray) -> np.ndarray:
  """AUROC (L, F, S) over the studies whose label counts."""
  areas = []
  for f, targets_N in enumerate(targets_NF.T):
    known = np.isfinite(targets_N)
    areas.append(auroc(scores_NLFS[known, :, f], targets_N[known, None, None] > 0))
  return np.stack(areas, axis=1)


def _name_labels(label_file: str) -> str:
  """For the signature."""
  if not label_file:
    return "records"
  path = pathlib.Path(label_file)
  return f"{path.name}@{file_sha256(path)[:8]}"


@functools.cache
def _init(config: TransformerConfig) -> Callable[[jax.Array], Params]:
  return jax.jit(
      functools.partial(init_params, config),
      out_shardings=param_shardings(make_mesh(), abstract_params(config)),
  )
