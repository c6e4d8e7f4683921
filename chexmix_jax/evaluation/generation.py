"""Report generation: greedy reports of pictures, or other texts, against those of the studies.

Shape suffixes: N reports.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from chexmix_jax.data import records, studies, tokens
from chexmix_jax.data.documents import IMAGE_PARTS, parse_written_form
from chexmix_jax.data.sources.source import VIEWS
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.evaluator import Context, Result
from chexmix_jax.evaluation.likelihood import own_log_likelihoods
from chexmix_jax.inference.generate import GenerateConfig
from chexmix_jax.inference.reports import generate_ids, make_prompt, read_report
from chexmix_jax.labels import POSITIVE
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.metrics.findings import read_findings
from chexmix_jax.metrics.reports import (
  report_figures,
  report_options,
  text_figures,
  text_options,
)
from chexmix_jax.models.transformer import Params
from chexmix_jax.tokenizers.text import normalise

_DEFAULT_DOCUMENTS = "image report"
# Texts that name findings.
_WITH_FINDINGS = ("report", "prior", "findings", "impression", "labels")


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
  """The prompts, and the work.

  Attributes:
    documents: one form as in data.documents, such as `image (question) answer`: its last part is
      written after the others, and compared with what the study has.
    mask_ratios: shares of each picture's codes that are hidden.
    indication: also with the study's indication as the beginning of the text, which is the
      published protocol; only with the default documents.
    max_new: tokens of a report at most.
    num_studies: of the split, from its first on.
    batch_size: reports written together.
  """

  documents: str = _DEFAULT_DOCUMENTS
  mask_ratios: tuple[float, ...] = (0.0,)
  indication: bool = False
  max_new: int = 96
  num_studies: int = 400
  batch_size: int = 64

  def __post_init__(self):
    parse_written_form(self.documents, "generation.documents")
    if self.indication and self.documents != _DEFAULT_DOCUMENTS:
      raise UserError(
          "generation.indication goes with the default documents alone; name the indication in"
          " generation.documents instead, as in image (indication) report."
      )
    if not self.mask_ratios or min(self.mask_ratios) < 0 or max(self.mask_ratios) > 1:
      raise UserError(f"mask_ratios={self.mask_ratios} of the generation must be from 0 to 1.")
    for name in ("max_new", "num_studies", "batch_size"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} of the generation must be positive.")


class Generation:
  """Greedy texts, against those of the studies: reports from `boi · image · eoi · eot`, or what the
  documents of the config say. Here "report" is whatever is written.

  Values:

    NAME                                  of the reports of the first mask ratio, those of
                                          chexmix_jax.metrics.reports
    mean_words, reference_mean_words      words of a report
    unfinished                            share that was cut at `max_new` tokens
    report_nll                            nats a token of the studies' own texts, their end among
                                          them, each after its prompt
    num_studies                           that were scored
    num_left_out                          studies of the split that lack a part of the documents
    num_empty                             reports without a word among them
    distinct_reports                      different texts among the generated ones
    NAME/mask=R                           at the other mask ratios
    NAME/with_indication                  with the indication before the report, of all studies,
                                          also those that have none; report_nll after it too
    most_common_report/NAME               baseline: the report that the training split has most
                                          often, for every study
    most_common_positive_report/NAME      the same among those with a positive finding

  Findings are scored in texts that name some: not in answers, questions and indications. Raises
  UserError where a split is missing, and where no study of it has all parts.
  """

  def __init__(self, context: Context, config: GenerationConfig = GenerationConfig()):
    self._context = context
    self._config = config
    self._form = parse_written_form(config.documents, "generation.documents")
    self._target = self._form.parts[-1]
    index = tokens.read_index(context.tokens, context.split)
    found = np.flatnonzero(self._form.can_be(index))
    if not len(found):
      raise UserError(
          f"No study of {context.split} in {context.tokens} has all of {config.documents!r}; name"
          " other generation.documents or other data."
      )
    self._num_left_out = len(index["pictures"]) - len(found)
    numbers = found[: config.num_studies].tolist()
    of_tokens = tokens.open_tokens(context.tokens, context.split)
    token_rows = [of_tokens[number] for number in numbers]
    # Codes (N, n) of the pictures and ids of the texts that are given, in their order.
    self._given: dict[str, Any] = {
        part: np.stack([_codes(row, part) for row in token_rows])
        if part in IMAGE_PARTS
        else [row[f"{part}_ids"] for row in token_rows]
        for part in self._form.parts[:-1]
    }
    self._texts = [row[f"{self._target}_ids"] for row in token_rows]
    of_studies = studies.open_studies(context.studies, context.split)
    rows = [of_studies[number] for number in numbers]
    self._patient_ids = [row["patient_id"] for row in rows]
    self._study_ids = [row["study_id"] for row in rows]
    self._references = [normalise(studies.text_of(row, self._target)) for row in rows]
    self._indications = [normalise(row["indication"]) for row in rows]
    self._baselines = self._score_baselines()

  def run(self, params: Params) -> Result:
    """Scores one checkpoint."""
    config = self._config
    settings = [(f"/mask={ratio:.2f}" if i else "", ratio, False)
                for i, ratio in enumerate(config.mask_ratios)]  # fmt: skip
    if config.indication:
      settings.append(("/with_indication", config.mask_ratios[0], True))
    values: dict[str, float] = {
        "num_studies": len(self._references), "num_left_out": self._num_left_out
    }  # fmt: skip
    figures: dict[str, Figure] = {}
    artefacts = {
        "study_ids": np.array(self._study_ids),
        "references": np.array(self._references),
    }
    for suffix, ratio, indication in settings:
      prompts = self._prompts(ratio, indication)
      generated, is_cut_N = self._generate(params, prompts, ratio)
      found = {
          **self._score(generated, by_finding=True),
          "mean_words": bootstrap.mean(_count_words(generated)),
          "reference_mean_words": bootstrap.mean(_count_words(self._references)),
          "unfinished": bootstrap.mean(is_cut_N),
      }
      found["report_nll"] = self._reference_nll(params, prompts, ratio)
      figures |= {f"{name}{suffix}": figure for name, figure in found.items()}
      values[f"num_empty{suffix}"] = generated.count("")
      values[f"distinct_reports{suffix}"] = len(set(generated))
      artefacts[f"generated{suffix}"] = np.array(generated)
    options = {
        "prompt": ",".join(self._form.parts[:-1]),
        "decoding": f"greedy,{config.max_new} new",
        **(report_options() if self._target in _WITH_FINDINGS else text_options()),
    }
    if self._target != "report":
      options["text"] = self._target
    return Result(values, artefacts, figures | self._baselines, self._patient_ids, options)

  def _generate(
      self, params: Params, prompts: list[np.ndarray], ratio: float
  ) -> tuple[list[str], np.ndarray]:
    """Texts, and which of them were cut, bool (N,)."""
    context, config = self._context, self._config
    vocabulary = context.vocabulary
    # boi ends every document that was trained on; the published model may write report_end instead.
    stop_ids = (vocabulary.boi, vocabulary.report_end)
    options = GenerateConfig(max_new=config.max_new, stop_ids=stop_ids)
    new = generate_ids(
        context.model, vocabulary, params, prompts, options, config.batch_size,
        f"{self._target} generation, {ratio:.0%} hidden",
    )  # fmt: skip
    reports = [read_report(vocabulary, context.text_tokenizer, row) for row in new]
    is_cut_N = np.array([row[-1] not in stop_ids for row in new])
    return [normalise(text) for text in reports], is_cut_N

  def _prompts(self, ratio: float, indication: bool) -> list[np.ndarray]:
    """Token ids before the texts; the indication as the text's own beginning."""
    context, parts = self._context, {}
    for place, (part, given) in enumerate(self._given.items()):
      if part in IMAGE_PARTS:
        keys = ((number, place) if place else (number,) for number in range(len(given)))
        given = context.hidden_ids(given, ratio, keys)
      parts[part] = given
    prompts = [
        make_prompt(context.vocabulary, {part: given[number] for part, given in parts.items()})
        for number in range(len(self._references))
    ]
    if not indication:
      return prompts
    texts = map(context.text_tokenizer.encode, self._indications)
    return [
        np.append(prompt, np.array(text, np.int32))
        for prompt, text in zip(prompts, texts, strict=True)
    ]

  def _reference_nll(
      self, params: Params, prompts: list[np.ndarray], ratio: float
  ) -> Figure:
    context = self._context
    log_likelihoods_N = own_log_likelihoods(
        context.model, context.vocabulary, params, prompts, self._texts,
        self._config.batch_size, f"likelihood of the texts, {ratio:.0%} hidden",
    )  # fmt: skip
    counts_N = np.array([len(text) + 1 for text in self._texts])
    return bootstrap.ratio(-log_likelihoods_N, counts_N)

  def _score(self, generated: Sequence[str], by_finding: bool) -> dict[str, Figure]:
    if self._target in _WITH_FINDINGS:
      return report_figures(self._references, generated, by_finding)
    return text_figures(self._references, generated)

  def _score_baselines(self) -> dict[str, Figure]:
    index = tokens.read_index(self._context.tokens, "train")
    source = studies.open_studies(self._context.studies, "train")
    counts = collections.Counter(
        normalise(studies.text_of(source[number], self._target))
        for number in np.flatnonzero(index[self._target]).tolist()
    )
    by_frequency = [text for text, _ in counts.most_common()]
    baselines = {"most_common_report": next(iter(by_frequency), None)}
    if self._target in _WITH_FINDINGS:
      is_positive = (text for text in by_frequency if np.any(read_findings([text]) == POSITIVE))
      baselines["most_common_positive_report"] = next(is_positive, None)
    figures: dict[str, Figure] = {}
    for name, text in baselines.items():
      if text is not None:
        found = self._score([text] * len(self._references), by_finding=False)
        figures |= {f"{name}/{key}": figure for key, figure in found.items()}
    return figures


def _codes(row: records.Record, part: str) -> np.ndarray:
  """Of the first picture of a view, or of any."""
  number = 0 if part == "image" else np.flatnonzero(row["views"] == VIEWS.index(part))[0]
  return row["codes"][number]


def _count_words(texts: Sequence[str]) -> np.ndarray:
  return np.array([len(text.split()) for text in texts])
