"""Scores checkpoints by the four evaluations: python -m chexmix_jax.evaluate --help

Every evaluation writes OUTPUT/NAME.json (figures, their baselines among them) and OUTPUT/NAME.npz
(arrays to draw and to count with). One that is finished for the same checkpoint is not repeated.
"""

import argparse
import dataclasses
import difflib
import hashlib
import io
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.data import studies as studies_lib
from chexmix_jax.data import tokens as tokens_lib
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.classification import Classification, ClassificationConfig
from chexmix_jax.evaluation.evaluator import Context, Evaluation, Result
from chexmix_jax.evaluation.generation import Generation, GenerationConfig
from chexmix_jax.evaluation.inpainting import Inpainting, InpaintingConfig
from chexmix_jax.evaluation.retrieval import Retrieval, RetrievalConfig
from chexmix_jax.files import write_whole
from chexmix_jax.inference.model import LoadedModel, load_model
from chexmix_jax.parallel.devices import warn_if_accelerator_unused
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer

EVALUATIONS: dict[str, tuple[Callable[[Context, Any], Evaluation], Any]] = {
    "classification": (Classification, ClassificationConfig()),
    "inpainting": (Inpainting, InpaintingConfig()),
    "generation": (Generation, GenerationConfig()),
    "retrieval": (Retrieval, RetrievalConfig()),
}
"""Name -> class and configuration."""


def run(
    checkpoints: Sequence[pathlib.Path],
    outputs: Sequence[pathlib.Path],
    studies: pathlib.Path,
    tokens: pathlib.Path,
    image_tokenizer: pathlib.Path,
    text_tokenizer: pathlib.Path,
    step: int | None = None,
    seed: int = 0,
    names: Sequence[str] = tuple(EVALUATIONS),
) -> None:
  """Writes the evaluations of each checkpoint (a run directory) to the output at its place.

  `step` is that of the checkpoints, the newest by default. What does not depend on the checkpoint
  is made once for all of them. Raises UserError for inputs that do not belong together, before
  anything is scored.
  """
  image, text = ImageTokenizer.load(image_tokenizer), load_text_tokenizer(text_tokenizer)
  context = None
  for checkpoint, output in zip(checkpoints, outputs, strict=True):
    model = load_model(checkpoint, step)
    card = tokens_lib.check_card(tokens, model.vocabulary, image.fingerprint, text.fingerprint)
    if card["request"]["studies"] != studies_lib.read_card(studies)["request"]:
      raise UserError(f"{tokens} was made from other studies than {studies}; run tokenize again.")
    # One layer to compile instead of all of them; on a CPU it is as fast.
    shape = dataclasses.replace(model.config, scan_layers=True)
    previous, context = context, Context(
        shape, model.vocabulary, studies, tokens, image, text, seed=seed
    )
    if context != previous:
      built: dict[str, Evaluation] = {}
    stamps = {name: _stamp(name, checkpoint, model, card, context) for name in names}
    pending = [name for name in names if not _is_finished(output, name, stamps[name])]
    for name in pending:
      if name not in built:
        evaluation, config = EVALUATIONS[name]
        built[name] = evaluation(context, config)
    for name in pending:
      start = time.perf_counter()
      result = built[name].run(model.params)
      seconds = round(time.perf_counter() - start, 1)
      values = _finite(name, result.values)
      _write(output, name, {**stamps[name], "seconds": seconds, "values": values}, result)
      print(f"{name} of step {model.step}, {seconds:.0f} s\n{format_table(values)}", flush=True)


def _stamp(
    name: str,
    checkpoint: pathlib.Path,
    model: LoadedModel,
    card: dict[str, Any],
    context: Context,
) -> dict[str, Any]:
  """What a result was made from; `inputs` is a sha256 over run, tokens and configuration."""
  config = config_lib.to_dict(EVALUATIONS[name][1])
  inputs = [str(checkpoint.resolve()), model.job, card["request"], config]
  return {
      "evaluation": name,
      "checkpoint_step": model.step,
      "seed": context.seed,
      "split": context.split,
      "inputs": hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest(),
  }


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


def _finite(name: str, values: dict[str, float]) -> dict[str, float]:
  """The values that are numbers; says which are not."""
  undefined = [key for key, value in values.items() if not math.isfinite(value)]
  if undefined:
    print(f"{name}: undefined and left out: {', '.join(undefined)}")
  return {key: float(value) for key, value in values.items() if key not in undefined}


def _write(output: pathlib.Path, name: str, found: dict[str, Any], result: Result) -> None:
  """NAME.npz, then NAME.json, each whole or not at all; never new arrays beside old figures."""
  try:
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").unlink(missing_ok=True)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **result.artefacts)
    write_whole(output / f"{name}.npz", arrays.getvalue())
    write_whole(output / f"{name}.json", json.dumps(found, indent=2, allow_nan=False))
  except OSError as error:
    raise UserError(f"{output} cannot be written ({error}); give another --output.") from error


def format_table(values: dict[str, float]) -> str:
  """Figures with their baselines beside them, a line each.

  A baseline is named after its figure: `chance/recall@1` is one of `recall@1`. Figures without one
  are left to the JSON, but for those that have a name of one word, such as counts.
  """
  baselines: dict[str, list[str]] = {}
  for key in values:
    kind, _, figure = key.partition("/")
    if figure in values:
      baselines.setdefault(figure, []).append(kind)
  rows = []
  for figure in values:
    if figure in baselines or "/" not in figure:
      beside = "  ".join(
          f"{kind} {_number(values[f'{kind}/{figure}'])}" for kind in baselines.get(figure, [])
      )
      rows.append((figure, _number(values[figure]), beside))
  width = max((len(figure) for figure, _, _ in rows), default=0)
  return "\n".join(f"  {f:{width}}  {value:>8}  {beside}".rstrip() for f, value, beside in rows)


def _number(value: float) -> str:
  return f"{value:.0f}" if value == int(value) and value > 1 else f"{value:.3f}"


def _names(text: str) -> list[str]:
  """Comma-separated names of evaluations, in the order of EVALUATIONS."""
  asked = [name.strip() for name in text.split(",") if name.strip()]
  for name in asked:
    if name not in EVALUATIONS:
      near = difflib.get_close_matches(name, EVALUATIONS, n=1)
      hint = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(EVALUATIONS)}."
      raise UserError(f"--evaluations holds {name!r}, which is none; {hint}")
  return [name for name in EVALUATIONS if name in asked]


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.evaluate",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      "--checkpoint", type=pathlib.Path, action="append", required=True,
      help="run directory; may be given several times, each with an --output of its own",
  )  # fmt: skip
  parser.add_argument("--step", type=int, help="of the checkpoint; default: the newest")
  for name, text in (
      ("studies", "--output of prepare"),
      ("tokens", "--output of tokenize"),
      ("image_tokenizer", "its folder"),
      ("text_tokenizer", "its model file, or a folder with vocab.json and merges.txt"),
  ):
    parser.add_argument(f"--{name}", type=pathlib.Path, required=True, help=text)
  parser.add_argument(
      "--output", type=pathlib.Path, action="append", required=True, help="folder of the results"
  )
  parser.add_argument("--seed", type=int, default=0, help="of masks, pools and random baselines")
  parser.add_argument("--evaluations", default=",".join(EVALUATIONS), help="default: %(default)s")
  args = parser.parse_args(argv)
  if len(args.checkpoint) != len(args.output):
    raise UserError(
        f"There are {len(args.checkpoint)} --checkpoint and {len(args.output)} --output; give one"
        " --output for each --checkpoint."
    )
  if args.seed < 0:
    raise UserError(f"--seed={args.seed} must not be negative.")
  names = _names(args.evaluations)
  warn_if_accelerator_unused()
  run(
      args.checkpoint, args.output, args.studies, args.tokens, args.image_tokenizer,
      args.text_tokenizer, args.step, args.seed, names,
  )  # fmt: skip


if __name__ == "__main__":
  cli.entry(main)
