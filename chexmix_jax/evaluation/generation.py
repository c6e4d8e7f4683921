"""Report generation: greedy reports of pictures, scored by the findings that they name.

Shape suffixes: N reports, F findings.
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
from chexmix_jax.labeler import find_mentions, label_report
from chexmix_jax.labels import CHEXPERT_14, INDEX, POSITIVE, UNCERTAIN
from chexmix_jax.models.transformer import Params
from chexmix_jax.tokenizers.text import normalise

FINDINGS = tuple(name for name in CHEXPERT_14 if name != "No Finding")
"""The findings that are scored."""

_COLUMNS = [INDEX[name] for name in FINDINGS]


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
  """The work.

  Attributes:
    max_new: tokens of a report at most.
    num_studies: of the split, from its first on.
    batch_size: reports written together.
  """

  max_new: int = 96
  num_studies: int = 400
  batch_size: int = 64

  def __post_init__(self):
    for name in ("max_new", "num_studies", "batch_size"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} of the generation must be positive.")


class Generation:
  """Greedy reports from `boi · image · eoi · eot`, against those of the studies.

  Findings are read from both by chexmix_jax.labeler. A finding counts where it is positive; what is
  uncertain counts as negative, and as positive in the values that end in `/uncertain_positive`.
  Values:

    finding_{precision,recall,f1}_micro   over all pairs of a report and one of FINDINGS
    finding_{precision,recall,f1}_macro   mean over the findings that some reference has
    finding_f1/FINDING                    one of those
    num_findings                          how many they are
    side_accuracy                         right side, of `side_count` findings that are positive in
                                          both and whose reference names one (left, right or
                                          bilateral); no side named is wrong
    exact_match                           reports equal to the reference, white space apart
    distinct_reports                      different texts among the generated ones
    mean_words, reference_mean_words      words of a report
    unfinished                            share that was cut at `max_new` tokens
    num_studies
    most_common_report/…                  baseline: the report that the training split has most
                                          often, for every study
    most_common_positive_report/…         the same among those with a positive finding

  A ratio of nothing to nothing is 0, but side_accuracy is left out. Raises UserError where a split
  is missing.
  """

  def __init__(self, context: Context, config: GenerationConfig = GenerationConfig()):
    self._context = context
    self._config = config
    number = config.num_studies
    self._codes = tokens.load_tokens(context.tokens, context.split).codes[:number]
    source = studies.open_studies(context.studies, context.split, ("pictures", "report"))
    rows = [source[i] for i in range(len(self._codes))]
    self._study_ids = [row["study_id"] for row in rows]
    self._references = [normalise(row["report"]) for row in rows]
    self._baselines = self._score_baselines()

  def run(self, params: Params) -> Result:
    """Scores one checkpoint."""
    generated, is_cut = self._generate(params)
    values = {
        **_scores(self._references, generated, by_finding=True),
        "exact_match": _exact_match(self._references, generated),
        "distinct_reports": len(set(generated)),
        "mean_words": _mean_words(generated),
        "reference_mean_words": _mean_words(self._references),
        "unfinished": float(np.mean(is_cut)),
        "num_studies": len(generated),
    }
    artefacts = {
        "study_ids": np.array(self._study_ids),
        "generated": np.array(generated),
        "references": np.array(self._references),
    }
    return Result({**values, **self._baselines}, artefacts)

  def _generate(self, params: Params) -> tuple[list[str], np.ndarray]:
    """Texts, and which of them were cut, bool (N,)."""
    context, config = self._context, self._config
    vocabulary = context.vocabulary
    prompts = report_prompts(vocabulary, vocabulary.codes_to_ids(self._codes))
    # boi ends every document that was trained on; the published model may write report_end instead.
    stop_ids = (vocabulary.boi, vocabulary.report_end)
    options = GenerateConfig(max_new=config.max_new, stop_ids=stop_ids)
    new = generate_ids(
        context.model, vocabulary, params, list(prompts), options, config.batch_size,
        "report generation",
    )  # fmt: skip
    texts = [read_report(vocabulary, context.text_tokenizer, row) for row in new]
    is_cut = np.array([row[-1] not in stop_ids for row in new])
    return [normalise(text) for text in texts], is_cut

  def _score_baselines(self) -> dict[str, float]:
    source = studies.open_studies(self._context.studies, "train", ("report",))
    counts = collections.Counter(normalise(row["report"]) for row in source)
    by_frequency = [text for text, _ in counts.most_common()]
    is_positive = (text for text in by_frequency if np.any(_labels([text]) == POSITIVE))
    baselines = {
        "most_common_report": by_frequency[0],
        "most_common_positive_report": next(is_positive, None),
    }
    values: dict[str, float] = {}
    for name, text in baselines.items():
      if text is not None:
        given = [text] * len(self._references)
        scores = _scores(self._references, given, by_finding=False)
        scores["exact_match"] = _exact_match(self._references, given)
        values |= {f"{name}/{key}": value for key, value in scores.items()}
    return values


def _labels(texts: Sequence[str]) -> np.ndarray:
  """int8 (N, F)."""
  of_text = {text: label_report(text)[_COLUMNS] for text in set(texts)}
  return np.stack([of_text[text] for text in texts])


def _scores(
    references: Sequence[str], generated: Sequence[str], by_finding: bool
) -> dict[str, float]:
  """Scores of the findings, of generated reports in the order of their references."""
  true, predicted = _labels(references), _labels(generated)
  values = finding_scores(true == POSITIVE, predicted == POSITIVE, by_finding)
  lenient = finding_scores(
      np.isin(true, (POSITIVE, UNCERTAIN)), np.isin(predicted, (POSITIVE, UNCERTAIN)), by_finding
  )
  right, count = side_agreement(references, generated, (true == POSITIVE) & (predicted == POSITIVE))
  values["side_count"] = count
  if count:
    values["side_accuracy"] = right / count
  return values | {f"{name}/uncertain_positive": value for name, value in lenient.items()}


def finding_scores(
    true_NF: np.ndarray, predicted_NF: np.ndarray, by_finding: bool = False
) -> dict[str, float]:
  """Precision, recall and F1 of bool arrays over FINDINGS, see Generation."""
  hits_F = np.sum(true_NF & predicted_NF, axis=0)
  true_F, predicted_F = true_NF.sum(0), predicted_NF.sum(0)
  scored_F = true_F > 0
  by_name_F = _precision_recall_f1(hits_F, true_F, predicted_F)
  micro = _precision_recall_f1(hits_F.sum(), true_F.sum(), predicted_F.sum())
  values = {f"finding_{name}_micro": float(value) for name, value in micro.items()}
  for name, scores_F in by_name_F.items():
    values[f"finding_{name}_macro"] = float(scores_F[scored_F].sum() / max(scored_F.sum(), 1))
  if by_finding:
    values["num_findings"] = int(scored_F.sum())
    for i in np.flatnonzero(scored_F):
      values[f"finding_f1/{FINDINGS[i]}"] = float(by_name_F["f1"][i])
  return values


def _precision_recall_f1(
    hits: np.ndarray, true: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
  return {
      "precision": hits / np.maximum(predicted, 1),
      "recall": hits / np.maximum(true, 1),
      "f1": 2 * hits / np.maximum(true + predicted, 1),
  }


def side_agreement(
    references: Sequence[str], generated: Sequence[str], both_NF: np.ndarray
) -> tuple[int, int]:
  """Right sides, and how many there are to get right, of the findings that are positive in both."""
  right = count = 0
  for reference, text, both_F in zip(references, generated, both_NF, strict=True):
    true, named = _sides(reference), _sides(text)
    for i in np.flatnonzero(both_F):
      if side := true.get(FINDINGS[i]):
        count += 1
        right += named.get(FINDINGS[i]) == side
  return right, count


def _sides(text: str) -> dict[str, str]:
  """Finding -> side of its positive mentions, where they name one; both sides are bilateral."""
  sides: dict[str, str] = {}
  for mention in find_mentions(text):
    if mention.value == POSITIVE and mention.side:
      before = sides.get(mention.finding, mention.side)
      sides[mention.finding] = mention.side if before == mention.side else "bilateral"
  return sides


def _exact_match(references: Sequence[str], generated: Sequence[str]) -> float:
  return float(np.mean([a == b for a, b in zip(references, generated, strict=True)]))


def _mean_words(texts: Sequence[str]) -> float:
  return float(np.mean([len(text.split()) for text in texts]))
