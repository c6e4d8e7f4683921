"""Classification of findings from frozen embeddings of pictures that are partly hidden.

Shape suffixes: M mask ratios, L layers, N studies, F findings, S strengths, D width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import tokens
from chexmix_jax.data.masking import mask_codes
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.evaluator import Context, Result
from chexmix_jax.evaluation.probe import auroc, fit_probes
from chexmix_jax.inference.embeddings import embed_images
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
    strengths: of the probes' L2 penalty, to choose among by validation; ties go to the first.
    min_cases: positive and negative studies that a finding needs in every split.
    max_train: training studies the probes are fitted to, drawn by lot where there are more.
    batch_size: pictures in a forward pass.
  """

  mask_ratios: tuple[float, ...] = (0.0, 0.5, 0.75, 0.9)
  findings: tuple[str, ...] = labels_lib.CHEXPERT_5
  strengths: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3)
  min_cases: int = 5
  max_train: int = 600
  batch_size: int = 32

  def __post_init__(self):
    if not self.mask_ratios or min(self.mask_ratios) < 0 or max(self.mask_ratios) > 1:
      raise UserError(f"mask_ratios={self.mask_ratios} must be shares between 0 and 1.")
    for name in self.findings:
      if name not in labels_lib.INDEX:
        known = ", ".join(labels_lib.CHEXPERT_14)
        raise UserError(f"findings holds {name!r}; use some of {known}.")
    if not self.strengths or min(self.strengths) <= 0:
      raise UserError(f"strengths={self.strengths} must be positive numbers.")


@dataclasses.dataclass(frozen=True)
class _Split:
  """Studies of one split: `numbers` are their places in it."""

  numbers: np.ndarray
  codes: np.ndarray
  targets_NF: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Curves:
  """AUROC over mask ratio, layer and finding; `best_M` is the layer that validation prefers."""

  test_MLF: np.ndarray
  validation_MLF: np.ndarray
  best_M: np.ndarray
  scores_MNF: np.ndarray

  @property
  def best_MF(self) -> np.ndarray:
    """Test AUROC at the preferred layer."""
    return self.test_MLF[np.arange(len(self.best_M)), self.best_M]


class Classification:
  """AUROC of linear probes on every layer's mean hidden state over the image positions.

  Prompt, pooling and protocol: `boi · image · eoi`, image positions only; probes are fitted to
  training studies, their penalty and the layer are chosen on validation studies, test studies are
  scored; labels by the `mixed` policy. Study number i of every split is hidden in the same places,
  and what is hidden at a ratio stays hidden at larger ones. Values:

    auroc/mask=R/layer=K     mean over the findings
    auroc/mask=R             the same, at the layer of the best mean AUROC in validation
    auroc/mask=R/FINDING     a finding at that layer
    random_init/auroc/mask=R baseline: the same of a model that was never trained, at its own layer
    num_findings             that have `min_cases` of both kinds in every split; others are left out
    num_train, num_test      studies

  Chance is 0.5. Raises UserError where a split is missing.
  """

  def __init__(self, context: Context, config: ClassificationConfig = ClassificationConfig()):
    self._context = context
    self._config = config
    tables = {
        name: tokens.load_tokens(context.tokens, name, need=("pictures",))
        for name in ("train", "val", context.split)
    }
    self._study_ids = tables[context.split].study_ids
    self._num_train = min(len(tables["train"].codes), config.max_train)
    lot = np.random.default_rng(context.seed).permutation(len(tables["train"].codes))
    chosen = {name: np.arange(len(table.codes)) for name, table in tables.items()}
    chosen["train"] = np.sort(lot[: self._num_train])
    targets = {
        name: labels_lib.apply_mixed_policy(table.labels)[chosen[name]]
        for name, table in tables.items()
    }
    self._findings = self._scored(targets)
    columns = [labels_lib.INDEX[name] for name in self._findings]
    self._splits = {
        name: _Split(chosen[name], table.codes[chosen[name]], targets[name][:, columns])
        for name, table in tables.items()
    }

  def run(self, params: Params) -> Result:
    """Scores one checkpoint."""
    values: dict[str, float] = {
        "num_findings": len(self._findings),
        "num_train": self._num_train,
        "num_test": len(self._study_ids),
    }
    if not self._findings:
      return Result(values)
    curves, baseline = self._curves(params, "classification"), self._random_init
    for m, ratio in enumerate(self._config.mask_ratios):
      name = f"auroc/mask={ratio:.2f}"
      values[name] = float(curves.best_MF[m].mean())
      values[f"random_init/{name}"] = float(baseline.best_MF[m].mean())
      for f, finding in enumerate(self._findings):
        values[f"{name}/{finding}"] = float(curves.best_MF[m, f])
      for layer, auroc_F in enumerate(curves.test_MLF[m]):
        values[f"{name}/layer={layer}"] = float(auroc_F.mean())
    return Result(values, self._artefacts(curves, baseline))

  def _artefacts(self, curves: _Curves, baseline: _Curves) -> dict[str, np.ndarray]:
    return {
        "findings": np.array(self._findings),
        "mask_ratios": np.array(self._config.mask_ratios),
        "study_ids": np.array(self._study_ids),
        "targets": self._splits[self._context.split].targets_NF,
        "scores": curves.scores_MNF,
        "auroc": curves.test_MLF,
        "validation_auroc": curves.validation_MLF,
        "layer": curves.best_M,
        "random_init/auroc": baseline.test_MLF,
        "random_init/layer": baseline.best_M,
    }

  def _scored(self, targets: dict[str, np.ndarray]) -> list[str]:
    """The findings with enough cases of both kinds; says which are left out."""
    least = self._config.min_cases
    scored: list[str] = []
    left_out: list[str] = []
    for name in self._config.findings:
      column = labels_lib.INDEX[name]
      positives = {split: int(t[:, column].sum()) for split, t in targets.items()}
      fewest = min(min(n, len(targets[split]) - n) for split, n in positives.items())
      (scored if fewest >= least else left_out).append(name)
    if left_out:
      print(
          f"classification: left out {', '.join(left_out)}, with fewer than {least} positive or"
          " negative studies in a split"
      )
    return scored

  @functools.cached_property
  def _random_init(self) -> _Curves:
    params = _init(self._context.model)(jax.random.key(self._context.seed))
    return self._curves(params, "random initialisation")

  def _curves(self, params: Params, description: str) -> _Curves:
    found = [self._at_ratio(params, r, description) for r in self._config.mask_ratios]
    return _Curves(**{name: np.stack([row[name] for row in found]) for name in found[0]})

  def _at_ratio(self, params: Params, ratio: float, description: str) -> dict[str, Any]:
    """The fields of _Curves at one mask ratio."""
    context, config = self._context, self._config
    splits = [self._splits[name] for name in ("train", "val", context.split)]
    ids = np.concatenate([self._hide(split, ratio) for split in splits])
    embedded_NLD = embed_images(
        context.model, context.vocabulary, params, ids, config.batch_size,
        f"{description}, {ratio:.0%} hidden",
    )  # fmt: skip
    ends = np.cumsum([len(split.codes) for split in splits])
    train_NLD, val_NLD, test_NLD = np.split(embedded_NLD, ends[:-1])
    train, val, test = (split.targets_NF for split in splits)
    probes = fit_probes(train_NLD, train, config.strengths)
    validation_LFS = auroc(probes.scores(val_NLD), val[:, None, :, None])
    strength_LF1 = validation_LFS.argmax(-1)[..., None]
    validation_LF = np.take_along_axis(validation_LFS, strength_LF1, -1)[..., 0]
    scores_NLF = np.take_along_axis(probes.scores(test_NLD), strength_LF1[None], -1)[..., 0]
    best = validation_LF.mean(-1).argmax()
    return {
        "test_MLF": auroc(scores_NLF, test[:, None]),
        "validation_MLF": validation_LF,
        "best_M": best,
        "scores_MNF": scores_NLF[:, best],
    }

  def _hide(self, split: _Split, ratio: float) -> np.ndarray:
    """Token ids (N, n) of a split with a share of each study's codes masked."""
    vocabulary = self._context.vocabulary
    hidden = [
        mask_codes(np.random.default_rng([self._context.seed, number]), codes, ratio)
        for number, codes in zip(split.numbers, split.codes, strict=True)
    ]
    return np.where(hidden, vocabulary.mask, vocabulary.codes_to_ids(split.codes))


@functools.cache
def _init(config: TransformerConfig) -> Callable[[jax.Array], Params]:
  return jax.jit(
      functools.partial(init_params, config),
      out_shardings=param_shardings(make_mesh(), abstract_params(config)),
  )
