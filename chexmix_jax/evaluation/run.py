"""Running evaluations of checkpoints: what was done before is kept, results are written whole.

An output folder gets, for each evaluation, NAME.json (figures, their 95 % intervals, the
signature), NAME.npz (arrays to draw and to count with) and NAME.samples.npz (the figures of every
bootstrap sample, to compare checkpoints by), and for all of them scores.csv and scores.jsonl.
"""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chexmix_jax import config as config_lib
from chexmix_jax.data import studies as studies_lib
from chexmix_jax.data import tokens as tokens_lib
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.classification import Classification, ClassificationConfig
from chexmix_jax.evaluation.evaluator import Context, Evaluation, Result
from chexmix_jax.evaluation.generation import Generation, GenerationConfig
from chexmix_jax.evaluation.inpainting import Inpainting, InpaintingConfig
from chexmix_jax.evaluation.retrieval import Retrieval, RetrievalConfig
from chexmix_jax.evaluation.summary import cells, summary_rows
from chexmix_jax.evaluation.zero_shot import ZeroShot, ZeroShotConfig
from chexmix_jax.files import write_lines, write_table, write_whole
from chexmix_jax.inference.model import LoadedModel, load_model
from chexmix_jax.metrics.bootstrap import Resamples, interval
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer

EVALUATIONS: dict[str, Callable[[Context, Any], Evaluation]] = {
    "classification": Classification,
    "zero_shot": ZeroShot,
    "inpainting": Inpainting,
    "generation": Generation,
    "retrieval": Retrieval,
}
"""Name -> class; EvaluateConfig has a field of the same name."""

_COLUMNS = ("step", "evaluation", "figure", "value", "low", "high", "signature")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """The protocols.

  Attributes:
    split: that is scored.
    samples: of the bootstrap over patients.
  """

  split: str = "test"
  samples: int = 1000
  classification: ClassificationConfig = dataclasses.field(default_factory=ClassificationConfig)
  zero_shot: ZeroShotConfig = dataclasses.field(default_factory=ZeroShotConfig)
  inpainting: InpaintingConfig = dataclasses.field(default_factory=InpaintingConfig)
  generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)
  retrieval: RetrievalConfig = dataclasses.field(default_factory=RetrievalConfig)

  def __post_init__(self):
    config_lib.check_at_least_one(self, ("samples",), "the evaluations")


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Paths of what the checkpoints are scored on: outputs of prepare and tokenize, tokenizers."""

  studies: pathlib.Path
  tokens: pathlib.Path
  image_tokenizer: pathlib.Path
  text_tokenizer: pathlib.Path


class Evaluator:
  """Evaluations over fixed inputs, for one checkpoint after the other.

  `names` are some of EVALUATIONS, `seed` is that of masks, pools, random baselines and bootstrap
  samples. What does not depend on the checkpoint is made once for all of them. Raises UserError for
  inputs that do not belong together, before anything is scored.
  """

  def __init__(
      self,
      inputs: Inputs,
      config: EvaluateConfig = EvaluateConfig(),
      names: Sequence[str] = tuple(EVALUATIONS),
      seed: int = 0,
  ):
    self._inputs, self._config, self._names, self._seed = inputs, config, names, seed
    self._image = ImageTokenizer.load(inputs.image_tokenizer)
    self._text = load_text_tokenizer(inputs.text_tokenizer)
    self._context: Context | None = None
    self._built: dict[str, Evaluation] = {}

  def __call__(
      self, checkpoint: pathlib.Path, output: pathlib.Path, step: int | None = None
  ) -> None:
    """Writes the evaluations of a checkpoint (a run directory) that `output` does not have yet."""
    model = load_model(checkpoint, step)
    card, context = self._prepare(model)
    stamps = {name: self._stamp(name, checkpoint, model, card) for name in self._names}
    pending = [name for name in stamps if not _is_finished(output, name, stamps[name])]
    for name in pending:
      self._build(name, context)
    for name in pending:
      start = time.perf_counter()
      result = self._built[name].run(model.params)
      resamples = Resamples(tuple(result.patient_ids), self._config.samples, self._seed)
      found, replicates = _resample(name, result, resamples)
      seconds = round(time.perf_counter() - start, 1)
      signature = _signature(stamps[name], result, self._config.samples)
      _write(
          output, name, {**stamps[name], "signature": signature, "seconds": seconds, **found},
          result, replicates, resamples.fingerprint,
      )  # fmt: skip
      print(
          f"{name} of step {model.step}, {seconds:.0f} s\n"
          f"{format_table(found['values'], found['intervals'], name)}",
          flush=True,
      )
    if pending:
      write_scores(output)

  def score(self, model: LoadedModel) -> dict[str, float]:
    """NAME/FIGURE -> number of all the evaluations; NaN where undefined. Writes nothing."""
    _, context = self._prepare(model)
    scores: dict[str, float] = {}
    for name in self._names:
      result = self._build(name, context).run(model.params)
      resamples = Resamples(tuple(result.patient_ids), 1, self._seed)
      values = _values(result, resamples)
      scores |= {f"{name}/{figure}": value for figure, value in values.items()}
    return scores

  def _build(self, name: str, context: Context) -> Evaluation:
    if name not in self._built:
      self._built[name] = EVALUATIONS[name](context, getattr(self._config, name))
    return self._built[name]

  def _prepare(self, model: LoadedModel) -> tuple[dict[str, Any], Context]:
    """The card of the tokens, and the context of the model: what was built for another goes."""
    inputs, config = self._inputs, self._config
    card = tokens_lib.check_card(
        inputs.tokens, model.vocabulary, self._image.fingerprint, self._text.fingerprint
    )
    if card["request"]["studies"] != studies_lib.read_card(inputs.studies)["request"]:
      raise UserError(
          f"{inputs.tokens} was made from other studies than {inputs.studies}; run tokenize again."
      )
    # One layer to compile instead of all of them; on a CPU it is as fast.
    shape = dataclasses.replace(model.config, scan_layers=True)
    context = Context(
        shape, model.vocabulary, inputs.studies, inputs.tokens, self._image, self._text,
        config.split, self._seed,
    )  # fmt: skip
    if context != self._context:
      self._context, self._built = context, {}
    return card, context

  def _stamp(
      self, name: str, checkpoint: pathlib.Path, model: LoadedModel, card: dict[str, Any]
  ) -> dict[str, Any]:
    """What a result was made from; `inputs` is a sha256 over run, tokens and configuration."""
    config = config_lib.to_dict(getattr(self._config, name))
    inputs = [
        str(checkpoint.resolve()), model.job, card["request"], config, self._config.samples
    ]
    return {
        "evaluation": name,
        "checkpoint": checkpoint.name,
        "checkpoint_step": model.step,
        "seed": self._seed,
        "split": self._config.split,
        "inputs": hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest(),
    }


def _values(result: Result, resamples: Resamples) -> dict[str, float]:
  """All that is a number; NaN where undefined."""
  figures = {name: resamples.value(function) for name, function in result.figures.items()}
  return {name: float(value) for name, value in (result.values | figures).items()}


def _resample(
    name: str, result: Result, resamples: Resamples
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
  """Values and intervals of all that is a number, and the replicates of the figures."""
  values = _values(result, resamples)
  undefined = [figure for figure, value in values.items() if not math.isfinite(value)]
  if undefined:
    print(f"{name}: undefined and left out: {', '.join(undefined)}")
  replicates = {
      figure: resamples.replicates(function)
      for figure, function in result.figures.items()
      if figure not in undefined
  }
  return {
      "values": {key: value for key, value in values.items() if key not in undefined},
      "intervals": {figure: interval(sampled) for figure, sampled in replicates.items()},
  }, replicates


def _signature(stamp: dict[str, Any], result: Result, samples: int) -> str:
  """What a score is quoted with, as key:value pairs; `inputs` tells settings and data apart."""
  parts = {
      "chexmix_jax": importlib.metadata.version("chexmix-jax"),
      "evaluation": stamp["evaluation"],
      **result.options,
      "split": stamp["split"],
      "studies": len(result.patient_ids),
      "patients": len(set(result.patient_ids)),
      "interval": f"95%,patients,{samples}",
      "seed": stamp["seed"],
      "checkpoint": f"{stamp['checkpoint']}@{stamp['checkpoint_step']}",
      "inputs": stamp["inputs"][:8],
  }
  return "|".join(f"{key}:{value}" for key, value in parts.items())


def _is_finished(output: pathlib.Path, name: str, stamp: dict[str, Any]) -> bool:
  path = output / f"{name}.json"
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return False
  if any(found.get(key) != value for key, value in stamp.items()):
    return False
  print(f"{name} of step {stamp['checkpoint_step']}: finished before, see {path}")
  return True


def _write(
    output: pathlib.Path,
    name: str,
    found: dict[str, Any],
    result: Result,
    replicates: dict[str, np.ndarray],
    fingerprint: str,
) -> None:
  """Arrays, then NAME.json, each whole or not at all; never new arrays beside old figures."""
  sampled = np.stack(list(replicates.values())) if replicates else np.zeros((0, 0))
  samples = {
      "figures": np.array(list(replicates)),
      "replicates": sampled.astype(np.float32),
      "fingerprint": np.array(fingerprint),
  }
  try:
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").unlink(missing_ok=True)
    for suffix, arrays in ((".npz", result.artefacts), (".samples.npz", samples)):
      buffer = io.BytesIO()
      np.savez_compressed(buffer, allow_pickle=False, **arrays)
      write_whole(output / f"{name}{suffix}", buffer.getvalue())
    write_whole(output / f"{name}.json", json.dumps(found, indent=2, allow_nan=False))
  except OSError as error:
    raise UserError(f"{output} cannot be written ({error}); give another --output.") from error


def write_scores(output: pathlib.Path) -> None:
  """scores.csv and scores.jsonl: a line for each figure of all that `output` has."""
  lines = []
  for name in EVALUATIONS:
    path = output / f"{name}.json"
    if path.exists():
      found = json.loads(path.read_text())
      for figure, value in found["values"].items():
        low, high = found["intervals"].get(figure, (None, None))
        row = (found["checkpoint_step"], name, figure, value, low, high, found["signature"])
        lines.append(dict(zip(_COLUMNS, row, strict=True)))
  if lines:
    write_table(output / "scores.csv", lines)
    write_lines(output / "scores.jsonl", lines)


def format_table(values: dict[str, float], intervals: dict[str, Sequence[float]], name: str) -> str:
  """The summary's figures of one evaluation: interval and baselines beside each."""
  lines: list[tuple[str, str, str]] = []
  for rows in summary_rows({name: values}).values():
    for row in rows:
      (number,), _, baselines = cells(row, [{name: values}])
      ends = intervals.get(row.figure)
      between = f"[{ends[0]:.{row.digits}f}, {ends[1]:.{row.digits}f}]" if ends else ""
      lines.append((row.caption, f"{number:>7}  {between:16}", baselines))
  width = max((len(caption) for caption, _, _ in lines), default=0)
  return "\n".join(f"  {c:{width}}  {number}  {beside}".rstrip() for c, number, beside in lines)
