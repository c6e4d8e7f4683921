"""Classification of findings from frozen embeddings of pictures that are partly hidden.

Shape suffixes: M mask ratios, K label fractions, L layers, N studies, P their pictures, F findings,
S strengths, D width, T codes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import scipy.special

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import tokens
from chexmix_jax.data.sources.source import VIEWS
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.evaluator import Context, Result
from chexmix_jax.evaluation.probe import fit_probes
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


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
  """What is hidden, and what is fitted.

  Attributes:
    mask_ratios: shares of each picture's codes that are hidden, in training and scored studies.
    findings: of CHEXPERT_14; the default are the five that the field scores.
    policy: what an uncertain label counts as, see chexmix_jax.labels.
    label_fractions: shares of the training studies that probes are fitted to; figures that do not
      name one are of the largest.
    pooling: of the hidden states: their mean over the image positions, or that of the `eoi` behind
      them, which has seen all of the image.
    aggregate: how the log-odds of a study's frontal pictures become one: the first picture's alone,
      their mean or the highest.
    strengths: of the probes' L2 penalty, to choose among by validation; ties go to the first.
    min_cases: positive and negative studies that a finding needs in every split.
    max_train: training studies the probes are fitted to, drawn by lot where there are more.
    batch_size: pictures in a forward pass.
  """

  mask_ratios: tuple[float, ...] = (0.0, 0.5, 0.75, 0.9)
  findings: tuple[str, ...] = labels_lib.CHEXPERT_5
  policy: labels_lib.Policy = "mixed"
  label_fractions: tuple[float, ...] = (1.0,)
  pooling: Pooling = "mean"
  aggregate: Literal["first", "mean", "max"] = "mean"
  strengths: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3)
  min_cases: int = 5
  max_train: int = 600
  batch_size: int = 32

  def __post_init__(self):
    if not self.mask_ratios or min(self.mask_ratios) < 0 or max(self.mask_ratios) > 1:
      raise UserError(f"mask_ratios={self.mask_ratios} must be shares between 0 and 1.")
    if not self.label_fractions or not all(0 < part <= 1 for part in self.label_fractions):
      raise UserError(f"label_fractions={self.label_fractions} must be shares above 0, up to 1.")
    for name in self.findings:
      if name not in labels_lib.INDEX:
        known = ", ".join(labels_lib.CHEXPERT_14)
        raise UserError(f"findings holds {name!r}; use some of {known}.")
    if not self.strengths or min(self.strengths) <= 0:
      raise UserError(f"strengths={self.strengths} must be positive numbers.")


@dataclasses.dataclass(frozen=True)
class _Split:
  """Studies of one split.

  Attributes:
    numbers: their places in it, (N,).
    codes: of their pictures, (P, T), those of a study together.
    starts: where the pictures of each study begin, (N,).
    targets_NF: NaN where a label does not count.
    patient_ids: N strings.
    study_ids: N strings.
  """

  numbers: np.ndarray
  codes: np.ndarray
  starts: np.ndarray
  targets_NF: np.ndarray
  patient_ids: list[str]
  study_ids: list[str]


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

  Chance is 0.5 for AUROC. Raises UserError where a split is missing.
  """

  def __init__(self, context: Context, config: ClassificationConfig = ClassificationConfig()):
    self._context = context
    self._config = config
    self._fractions = sorted(config.label_fractions, reverse=True)
    sources = {
        name: list(tokens.open_tokens(context.tokens, name, need=("pictures",)))
        for name in ("train", "val", context.split)
    }
    for name, rows in sources.items():
      if not rows:
        raise UserError(f"No study of {name} in {context.tokens} has pictures; use other data.")
    self._lot = np.random.default_rng(context.seed).permutation(len(sources["train"]))
    chosen = {name: np.arange(len(rows)) for name, rows in sources.items()}
    chosen["train"] = np.sort(self._lot[: config.max_train])
    targets = {
        name: labels_lib.apply_policy(
            np.stack([rows[i]["labels"] for i in chosen[name]]), config.policy
        )
        for name, rows in sources.items()
    }
    self._findings = self._scored(targets)
    columns = [labels_lib.INDEX[name] for name in self._findings]
    self._splits = {
        name: self._split(rows, chosen[name], targets[name][:, columns], name == "train")
        for name, rows in sources.items()
    }

  def _split(
      self, rows: list[dict[str, Any]], numbers: np.ndarray, targets_NF: np.ndarray, is_train: bool
  ) -> _Split:
    first = is_train or self._config.aggregate == "first"
    codes = [_frontal_codes(rows[i])[: 1 if first else None] for i in numbers]
    return _Split(
        numbers,
        np.concatenate(codes),
        np.cumsum([0, *map(len, codes[:-1])]),
        targets_NF,
        [rows[i]["patient_id"] for i in numbers],
        [rows[i]["study_id"] for i in numbers],
    )

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
        "pooling": config.pooling,
        "aggregate": config.aggregate,
        "probe": "L2 logistic regression, strength and layer by validation",
    }
    if not self._findings:
      return Result(values, options=options)
    fits, baseline = self._fit(params, "classification"), self._random_init
    figures: dict[str, Figure] = {}
    for m, ratio in enumerate(config.mask_ratios):
      for k, fraction in enumerate(self._fractions):
        suffix = f"/labels={fraction:g}" if k else ""
        name = f"mask={ratio:.2f}{suffix}"
        figures |= self._figures(name, fits.scores_NF(m, k))
        if untrained := self._by_finding(auroc_figure, baseline.scores_NF(m, k)):
          figures[f"random_init/auroc/{name}"] = bootstrap.average(list(untrained.values()))
        for layer, auroc_F in enumerate(fits.test_MKLF[m, k]):
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

  def _scored(self, targets: dict[str, np.ndarray]) -> list[str]:
    """The findings with enough cases of both kinds; says which are left out."""
    least, asked = self._config.min_cases, self._config.findings
    scored = labels_lib.with_both_kinds(asked, targets.values(), least)
    if left_out := [name for name in asked if name not in scored]:
      print(
          f"classification: left out {', '.join(left_out)}, with fewer than {least} positive or"
          " negative studies in a split"
      )
    return scored

  @functools.cached_property
  def _random_init(self) -> _Fits:
    params = _init(self._context.model)(jax.random.key(self._context.seed))
    return self._fit(params, "random initialisation")

  def _fit(self, params: Params, description: str) -> _Fits:
    found = [self._at_ratio(params, r, description) for r in self._config.mask_ratios]
    return _Fits(*(np.stack(arrays) for arrays in zip(*found, strict=True)))

  def _at_ratio(self, params: Params, ratio: float, description: str) -> list[np.ndarray]:
    """The fields of _Fits at one mask ratio."""
    context, config = self._context, self._config
    splits = [self._splits[name] for name in ("train", "val", context.split)]
    ids = np.concatenate([self._hide(split, ratio) for split in splits])
    embedded_PLD = embed_images(
        context.model, context.vocabulary, params, ids, config.batch_size,
        f"{description}, {ratio:.0%} hidden", config.pooling,
    )  # fmt: skip
    ends = np.cumsum([len(split.codes) for split in splits])
    embedded = np.split(embedded_PLD, ends[:-1])
    fits = [self._at_fraction(fraction, *embedded) for fraction in self._fractions]
    return [np.stack(arrays) for arrays in zip(*fits, strict=True)]

  def _at_fraction(
      self, fraction: float, train_NLD: np.ndarray, val_PLD: np.ndarray, test_PLD: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    train, val, test = (self._splits[name] for name in ("train", "val", self._context.split))
    count = max(1, round(fraction * len(train.numbers)))
    # Smaller shares are part of larger ones.
    kept = np.isin(train.numbers, self._lot[:count])
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

  def _of_studies(self, scores_PLFS: np.ndarray, split: _Split) -> np.ndarray:
    """One score for all pictures of a study, (N, L, F, S)."""
    if self._config.aggregate == "max":
      return np.maximum.reduceat(scores_PLFS, split.starts, axis=0)
    counts_N = np.diff(split.starts, append=len(split.codes))
    sums_NLFS = np.add.reduceat(scores_PLFS, split.starts, axis=0)
    return sums_NLFS / counts_N[:, None, None, None].astype(np.float32)

  def _hide(self, split: _Split, ratio: float) -> np.ndarray:
    """Token ids (P, n) of a split with a share of each picture's codes masked."""
    study_P = np.searchsorted(split.starts, np.arange(len(split.codes)), side="right") - 1
    later_P = np.arange(len(split.codes)) - split.starts[study_P]
    keys = (
        (split.numbers[study], *([later] if later else []))
        for study, later in zip(study_P, later_P, strict=True)
    )
    return self._context.hidden_ids(split.codes, ratio, keys)


def _auroc_of_known(scores_NLFS: np.ndarray, targets_NF: np.ndarray) -> np.ndarray:
  """AUROC (L, F, S) over the studies whose label counts."""
  areas = []
  for f, targets_N in enumerate(targets_NF.T):
    known = np.isfinite(targets_N)
    areas.append(auroc(scores_NLFS[known, :, f], targets_N[known, None, None] > 0))
  return np.stack(areas, axis=1)


def _frontal_codes(record: dict[str, Any]) -> np.ndarray:
  """Codes (pictures, T) of the frontal pictures, or of the first where no view is known as such."""
  is_frontal = record["views"] == VIEWS.index("frontal")
  return record["codes"][is_frontal] if is_frontal.any() else record["codes"][:1]


@functools.cache
def _init(config: TransformerConfig) -> Callable[[jax.Array], Params]:
  return jax.jit(
      functools.partial(init_params, config),
      out_shardings=param_shardings(make_mesh(), abstract_params(config)),
  )
