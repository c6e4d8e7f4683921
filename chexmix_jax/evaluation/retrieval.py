"""Retrieval of the report that belongs to a picture, and of the picture that belongs to a report.

Shape suffixes: N studies of a pool, L layers, D width.
"""

import dataclasses
import functools

import numpy as np

from chexmix_jax.data import tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.evaluator import Context, Result
from chexmix_jax.evaluation.likelihood import log_likelihoods
from chexmix_jax.inference.embeddings import embed_images, embed_reports
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.models.transformer import Params

_DIRECTIONS = ("image_to_report", "report_to_image")


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """The pools, and the work of a pass.

  Attributes:
    pool_size: studies that are ranked against one another, drawn by lot; other patients first.
    validation_pool_size: of the validation studies that the score is chosen with.
    ranks: k of recall@k.
    alphas: weights of log P(report) that are subtracted.
    batch_size: pictures or reports in a pass of the embeddings.
    images_a_pass: pictures whose likelihoods of reports are computed together.
    reports_a_pass: reports of about one length that share a pass.
  """

  pool_size: int = 50
  validation_pool_size: int = 25
  ranks: tuple[int, ...] = (1, 5, 10)
  alphas: tuple[float, ...] = (0.5, 1.0)
  batch_size: int = 32
  images_a_pass: int = 1
  reports_a_pass: int = 16

  def __post_init__(self):
    for name in ("pool_size", "validation_pool_size", "images_a_pass", "reports_a_pass"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} of the retrieval must be positive.")


@dataclasses.dataclass(frozen=True)
class _Pool:
  """N studies of one split."""

  study_ids: list[str]
  patient_ids: list[str]
  codes: np.ndarray
  texts: list[np.ndarray]

  @functools.cached_property
  def report_numbers(self) -> np.ndarray:
    """(N,); reports that read the same have the same number, from 0 in the order of the pool."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(text.tobytes(), len(numbers)) for text in self.texts])

  @property
  def relevant_NN(self) -> np.ndarray:
    """Which reports read the same."""
    return self.report_numbers[:, None] == self.report_numbers


class Retrieval:
  """Ranks of what belongs together within a pool of test studies.

  Scores of a picture and a report:

    cosine/layer=K              of the mean hidden states of `boi · image · eoi` over the image and
                                of `eot · text` over the text
    log_likelihood              log P(text, end of report | image), in nats
    log_likelihood_per_token    the same over the number of tokens
    pmi/alpha=A                 log P(report | image) - A · log P(report); the latter is the
                                likelihood after a picture that is wholly hidden

  Values, for `image_to_report` and `report_to_image`:

    DIRECTION/recall@K/SCORE, DIRECTION/median_rank/SCORE   for every score
    DIRECTION/recall@K, DIRECTION/median_rank               at the score with the best mean recall
                                                            in the validation pool
    chance/DIRECTION/recall@K, chance/DIRECTION/median_rank baseline: a ranking by lot
    pool_size

  A report that reads the same as the right one is right too. A tie counts against the model.
  Intervals are over the queries' patients, in the pool as it is. Raises UserError where a split is
  missing.
  """

  def __init__(self, context: Context, config: RetrievalConfig = RetrievalConfig()):
    self._context = context
    self._config = config
    self._test = self._draw(context.split, config.pool_size)
    self._validation = self._draw("val", config.validation_pool_size)

  def run(self, params: Params) -> Result:
    """Scores one checkpoint."""
    validation = self._ranks(self._validation, params, "retrieval, validation pool")
    test = self._ranks(self._test, params, "retrieval")
    values: dict[str, float] = {"pool_size": len(self._test.codes)}
    figures: dict[str, Figure] = {}
    artefacts = {"study_ids": np.array(self._test.study_ids)}
    for direction in _DIRECTIONS:
      quality = {
          score: np.mean([np.mean(ranks <= k) for k in self._config.ranks])
          for score, ranks in validation[direction].items()
      }
      chosen = max(quality, key=lambda score: quality[score])
      artefacts[f"{direction}/score"] = np.array(chosen)
      figures |= self._figures(direction, "", test[direction][chosen])
      chance = chance_of_hit(self._test.relevant_NN.sum(1))
      for k in self._config.ranks:
        values[f"chance/{direction}/recall@{k}"] = float(chance[:k][-1])
      values[f"chance/{direction}/median_rank"] = float(1 + np.argmax(chance >= 0.5 - 1e-9))
      for score, ranks in test[direction].items():
        figures |= self._figures(direction, f"/{score}", ranks)
        artefacts[f"{direction}/ranks/{score}"] = ranks
    options = {
        "pool": f"{len(self._test.codes)},by lot,other patients first",
        "score": "by validation",
        "identical reports": "hits",
        "ties": "against the model",
    }
    return Result(values, artefacts, figures, self._test.patient_ids, options)

  def _figures(self, direction: str, suffix: str, ranks: np.ndarray) -> dict[str, Figure]:
    figures = {
        f"{direction}/recall@{k}{suffix}": bootstrap.mean(ranks <= k) for k in self._config.ranks
    }
    return {**figures, f"{direction}/median_rank{suffix}": bootstrap.median(ranks)}

  def _draw(self, split: str, size: int) -> _Pool:
    """`size` studies by lot: one of each patient, then more of them where patients are too few."""
    table = tokens.load_tokens(self._context.tokens, split)
    lot = np.random.default_rng(self._context.seed).permutation(len(table.codes))
    first: list[int] = []
    later: list[int] = []
    seen: set[str] = set()
    for i in lot.tolist():
      (later if table.patient_ids[i] in seen else first).append(i)
      seen.add(table.patient_ids[i])
    chosen = (first + later)[:size]
    return _Pool(
        study_ids=[table.study_ids[i] for i in chosen],
        patient_ids=[table.patient_ids[i] for i in chosen],
        codes=table.codes[chosen],
        texts=[table.texts[i] for i in chosen],
    )

  def _ranks(
      self, pool: _Pool, params: Params, description: str
  ) -> dict[str, dict[str, np.ndarray]]:
    """Direction -> score -> ranks (N,)."""
    scores = {
        **self._cosines(pool, params, description),
        **self._likelihoods(pool, params, description),
    }
    relevant_NN = pool.relevant_NN  # Symmetric.
    return {
        "image_to_report": {n: ranks_of_best(s, relevant_NN) for n, s in scores.items()},
        "report_to_image": {n: ranks_of_best(s.T, relevant_NN) for n, s in scores.items()},
    }

  def _cosines(self, pool: _Pool, params: Params, description: str) -> dict[str, np.ndarray]:
    """Scores (N pictures, N reports) of every layer."""
    context, batch_size = self._context, self._config.batch_size
    image_ids = context.vocabulary.codes_to_ids(pool.codes)
    sides = [
        embed_images(
            context.model, context.vocabulary, params, image_ids, batch_size, description
        ),
        embed_reports(
            context.model, context.vocabulary, params, pool.texts, batch_size, description
        ),
    ]
    images_NLD, reports_NLD = (
        side / np.maximum(np.linalg.norm(side, axis=-1, keepdims=True), 1e-12) for side in sides
    )
    cosines = np.einsum("MLD,NLD->LMN", images_NLD, reports_NLD)
    return {f"cosine/layer={layer}": cosine for layer, cosine in enumerate(cosines)}

  def _likelihoods(self, pool: _Pool, params: Params, description: str) -> dict[str, np.ndarray]:
    """Scores (N pictures, N reports) by likelihood."""
    context, config = self._context, self._config
    vocabulary = context.vocabulary
    hidden = np.full_like(pool.codes[:1], vocabulary.mask)
    image_ids = np.concatenate([vocabulary.codes_to_ids(pool.codes), hidden])
    once = [pool.texts[i] for i in np.unique(pool.report_numbers, return_index=True)[1]]
    both = log_likelihoods(
        context.model, vocabulary, params, image_ids, once,
        config.images_a_pass, config.reports_a_pass, description,
    )[:, pool.report_numbers]  # fmt: skip
    given, alone = both[:-1], both[-1]
    lengths = np.array([len(text) + 1 for text in pool.texts])
    scores = {"log_likelihood": given, "log_likelihood_per_token": given / lengths}
    return scores | {f"pmi/alpha={alpha:g}": given - alpha * alone for alpha in config.alphas}


def ranks_of_best(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
  """Rank, from 1, of the best relevant candidate of each query; both are (queries, candidates).

  What is not relevant goes first in a tie, and a score that is not a number is the lowest.
  """
  scores = np.where(np.isnan(scores), -np.inf, scores)
  best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
  return 1 + np.sum(~relevant & (scores >= best), axis=1)


def chance_of_hit(relevant_counts: np.ndarray) -> np.ndarray:
  """Chance that a ranking by lot of N candidates has a relevant one among the first k = 1 … N.

  The mean over N queries with `relevant_counts` relevant candidates each: 1 - C(N-r, k) / C(N, k).
  """
  count = len(relevant_counts)
  drawn = np.arange(count)
  left = np.maximum(count - relevant_counts[:, None] - drawn, 0)
  return 1 - np.cumprod(left / (count - drawn), axis=1).mean(0)
