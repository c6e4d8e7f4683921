"""Report generation: greedy reports of pictures, against those of the studies.

Shape suffixes: N reports.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from chexmix_jax.data import studies, tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.evaluator import Context, Result
from chexmix_jax.inference.generate import GenerateConfig
from chexmix_jax.inference.reports import generate_ids, read_report, report_prompts
from chexmix_jax.labels import POSITIVE
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.metrics.findings import read_findings
from chexmix_jax.metrics.reports import report_figures, report_options
from chexmix_jax.models.transformer import Params
from chexmix_jax.tokenizers.text import normalise


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
  """The prompts, and the work.

  Attributes:
    mask_ratios: shares of each picture's codes that are hidden.
    indication: also with the study's indication as the beginning of the text.
    max_new: tokens of a report at most.
    num_studies: of the split, from its first on.
    batch_size: reports written together.
  """

  mask_ratios: tuple[float, ...] = (0.0,)
  indication: bool = False
  max_new: int = 96
  num_studies: int = 400
  batch_size: int = 64

  def __post_init__(self):
    if not self.mask_ratios or min(self.mask_ratios) < 0 or max(self.mask_ratios) > 1:
      raise UserError(f"mask_ratios={self.mask_ratios} of the generation must be from 0 to 1.")
    for name in ("max_new", "num_studies", "batch_size"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} of the generation must be positive.")


class Generation:
  """Greedy reports from `boi · image · eoi · eot`, against those of the studies.

  Values:

    NAME                                  of the reports of the first mask ratio, those of
                                          chexmix_jax.metrics.reports
    mean_words, reference_mean_words      words of a report
    unfinished                            share that was cut at `max_new` tokens
    num_studies                           that were scored
    num_empty                             reports without a word among them
    distinct_reports                      different texts among the generated ones
    NAME/mask=R                           at the other mask ratios
    NAME/with_indication                  with the indication before the report, of all studies,
                                          also those that have none
    most_common_report/NAME               baseline: the report that the training split has most
                                          often, for every study
    most_common_positive_report/NAME      the same among those with a positive finding

  Raises UserError where a split is missing.
  """

  def __init__(self, context: Context, config: GenerationConfig = GenerationConfig()):
    self._context = context
    self._config = config
    number = config.num_studies
    table = tokens.load_tokens(context.tokens, context.split)
    self._codes, self._patient_ids = table.codes[:number], table.patient_ids[:number]
    source = studies.open_studies(context.studies, context.split, ("pictures", "report"))
    rows = [source[i] for i in range(len(self._codes))]
    self._study_ids = [row["study_id"] for row in rows]
    self._references = [normalise(row["report"]) for row in rows]
    self._indications = [normalise(row["indication"]) for row in rows]
    self._baselines = self._score_baselines()

  def run(self, params: Params) -> Result:
    """Scores one checkpoint."""
    config = self._config
    settings = [(f"/mask={ratio:.2f}" if i else "", ratio, False)
                for i, ratio in enumerate(config.mask_ratios)]  # fmt: skip
    if config.indication:
      settings.append(("/with_indication", config.mask_ratios[0], True))
    values: dict[str, float] = {"num_studies": len(self._references)}
    figures: dict[str, Figure] = {}
    artefacts = {
        "study_ids": np.array(self._study_ids),
        "references": np.array(self._references),
    }
    for suffix, ratio, indication in settings:
      generated, is_cut_N = self._generate(params, ratio, indication)
      found = {
          **report_figures(self._references, generated, by_finding=True),
          "mean_words": bootstrap.mean(_count_words(generated)),
          "reference_mean_words": bootstrap.mean(_count_words(self._references)),
          "unfinished": bootstrap.mean(is_cut_N),
      }
      figures |= {f"{name}{suffix}": figure for name, figure in found.items()}
      values[f"num_empty{suffix}"] = generated.count("")
      values[f"distinct_reports{suffix}"] = len(set(generated))
      artefacts[f"generated{suffix}"] = np.array(generated)
    options = {"prompt": "image", "decoding": f"greedy,{config.max_new} new", **report_options()}
    return Result(values, artefacts, figures | self._baselines, self._patient_ids, options)

  def _generate(
      self, params: Params, ratio: float, indication: bool
  ) -> tuple[list[str], np.ndarray]:
    """Texts, and which of them were cut, bool (N,)."""
    context, config = self._context, self._config
    vocabulary = context.vocabulary
    keys = ((number,) for number in range(len(self._codes)))
    image_ids = context.hidden_ids(self._codes, ratio, keys)
    prompts = list(report_prompts(vocabulary, image_ids))
    if indication:
      texts = map(context.text_tokenizer.encode, self._indications)
      prompts = [
          np.append(prompt, np.array(text, np.int32))
          for prompt, text in zip(prompts, texts, strict=True)
      ]
    # boi ends every document that was trained on; the published model may write report_end instead.
    stop_ids = (vocabulary.boi, vocabulary.report_end)
    options = GenerateConfig(max_new=config.max_new, stop_ids=stop_ids)
    new = generate_ids(
        context.model, vocabulary, params, prompts, options, config.batch_size,
        f"report generation, {ratio:.0%} hidden",
    )  # fmt: skip
    reports = [read_report(vocabulary, context.text_tokenizer, row) for row in new]
    is_cut_N = np.array([row[-1] not in stop_ids for row in new])
    return [normalise(text) for text in reports], is_cut_N

  def _score_baselines(self) -> dict[str, Figure]:
    source = studies.open_studies(self._context.studies, "train", ("report",))
    counts = collections.Counter(normalise(row["report"]) for row in source)
    by_frequency = [text for text, _ in counts.most_common()]
    is_positive = (text for text in by_frequency if np.any(read_findings([text]) == POSITIVE))
    baselines = {
        "most_common_report": by_frequency[0],
        "most_common_positive_report": next(is_positive, None),
    }
    figures: dict[str, Figure] = {}
    for name, text in baselines.items():
      if text is not None:
        found = report_figures(self._references, [text] * len(self._references), by_finding=False)
        figures |= {f"{name}/{key}": figure for key, figure in found.items()}
    return figures


def _count_words(texts: Sequence[str]) -> np.ndarray:
  return np.array([len(text.split()) for text in texts])
