"""Findings without a probe: is it likelier, after the picture, that a finding is there or absent?

Shape suffixes: N studies, F findings.
"""

import dataclasses

import numpy as np

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.evaluator import Context, Result
from chexmix_jax.evaluation.likelihood import log_likelihoods
from chexmix_jax.labels import PHRASES
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.metrics.classification import auprc_figure, auroc_figure
from chexmix_jax.models.transformer import Params


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
  """What is asked, and the work.

  Attributes:
    findings: some of PHRASES; the default are the five that the field scores.
    policy: what an uncertain label counts as, see chexmix_jax.labels.
    num_studies: of the split, from its first on.
    images_a_pass: pictures whose likelihoods are computed together.
  """

  findings: tuple[str, ...] = labels_lib.CHEXPERT_5
  policy: labels_lib.Policy = "mixed"
  num_studies: int = 200
  images_a_pass: int = 8

  def __post_init__(self):
    for name in self.findings:
      if name not in PHRASES:
        raise UserError(f"findings holds {name!r}; use some of {', '.join(PHRASES)}.")
    for name in ("num_studies", "images_a_pass"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} of the zero-shot scores must be positive.")


class ZeroShot:
  """AUROC of log P(phrase of presence | image) - log P(phrase of absence | image), both complete.

  Values:

    auroc, auprc                    mean over the findings; chance is 0.5 for AUROC
    auroc/FINDING, auprc/FINDING    one of them
    num_findings                    that have both kinds in the split
    num_left_out                    of the others, which are named
    num_studies

  A finding that all or none of the studies have has no AUROC. Raises UserError where the split is
  missing.
  """

  def __init__(self, context: Context, config: ZeroShotConfig = ZeroShotConfig()):
    self._context, self._config = context, config
    table = tokens.load_tokens(context.tokens, context.split, need=("pictures",))
    take = slice(config.num_studies)
    self._codes, self._patient_ids = table.codes[take], table.patient_ids[take]
    columns = [labels_lib.INDEX[name] for name in config.findings]
    targets_NF = labels_lib.apply_policy(table.labels[take], config.policy)[:, columns]
    kept_F = labels_lib.have_both_kinds([targets_NF])
    self._findings = [name for name, kept in zip(config.findings, kept_F, strict=True) if kept]
    self._targets_NF = targets_NF[:, kept_F]
    if left_out := [name for name in config.findings if name not in self._findings]:
      print(f"zero_shot: left out {', '.join(left_out)}, which all or none of the studies have")

  def run(self, params: Params) -> Result:
    """Scores one checkpoint."""
    values: dict[str, float] = {
        "num_findings": len(self._findings),
        "num_left_out": len(self._config.findings) - len(self._findings),
        "num_studies": len(self._codes),
    }
    options = {
        "policy": self._config.policy,
        "findings": ",".join(self._findings) or "none",
        "prompt": "image, then one sentence",
    }
    if not self._findings:
      return Result(values, options=options)
    scores_NF = self._scores(params)
    figures: dict[str, Figure] = {}
    for metric, make in (("auroc", auroc_figure), ("auprc", auprc_figure)):
      by_finding = {
          f"{metric}/{name}": make(scores_NF[:, f], self._targets_NF[:, f])
          for f, name in enumerate(self._findings)
      }
      figures |= {metric: bootstrap.average(list(by_finding.values())), **by_finding}
    artefacts = {"findings": np.array(self._findings), "scores": scores_NF}
    return Result(values, artefacts, figures, self._patient_ids, options)

  def _scores(self, params: Params) -> np.ndarray:
    context = self._context
    phrases = [phrase for name in self._findings for phrase in PHRASES[name]]
    encoded = (np.array(context.text_tokenizer.encode(phrase), np.int32) for phrase in phrases)
    texts = [context.vocabulary.text_to_ids(ids) for ids in encoded]
    likelihoods = log_likelihoods(
        context.model, context.vocabulary, params, context.vocabulary.codes_to_ids(self._codes),
        texts, self._config.images_a_pass, len(texts), "zero-shot classification",
    )  # fmt: skip
    return likelihoods[:, ::2] - likelihoods[:, 1::2]
