"""Predicts from pictures by a checkpoint: python -m chexmix_jax.predict {report,…} --help

The same command goes on after an interruption, and does nothing where it has finished. A picture
that cannot be read gets a row with the reason, and the others are done.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from chexmix_jax import cli
from chexmix_jax.data.documents import IMAGE_PARTS, parse_written_form
from chexmix_jax.data.workers import available_cpus
from chexmix_jax.errors import UserError
from chexmix_jax.files import write_whole
from chexmix_jax.inference.inpaint import MASK_SHAPES, METHODS, draw_mask
from chexmix_jax.inference.inputs import Inputs, list_inputs
from chexmix_jax.inference.journal import Journal, Rows
from chexmix_jax.inference.model import Model, load
from chexmix_jax.inference.pictures import hide, side_by_side, surprise_map
from chexmix_jax.parallel.devices import warn_if_accelerator_unused
from chexmix_jax.progress import progress

_TABLE = "pictures.csv"  # Of a folder of pictures: which is whose.


@dataclasses.dataclass(frozen=True)
class Batch:
  """Pictures that could be read.

  Attributes:
    pixels: float32 (B, H, W, C) in [-1, 1].
    numbers: their places among all inputs, from 0.
    names: of their results, without a suffix.
    texts: of what goes before a report, by its name in --documents.
  """

  pixels: np.ndarray
  numbers: list[int]
  names: list[str]
  texts: dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Command:
  """One of the predictions.

  Attributes:
    settings: of the arguments, those that its results depend on.
    suffixes: that its output may have; none for a folder.
    predict: from a batch to an array for each result, (B, …); may write files into the output.
    write: writes --output for all inputs, from the errors ("" where there is none) and from the
      results of those without.
  """

  settings: tuple[str, ...]
  suffixes: tuple[str, ...]
  predict: Callable[[Model, Batch, argparse.Namespace], Rows]
  write: Callable[[argparse.Namespace, Inputs, np.ndarray, Rows], None]


def run(args: argparse.Namespace) -> None:
  """What the command line asks for; see `main`."""
  command = COMMANDS[args.command]
  if command.suffixes and args.output.suffix not in command.suffixes:
    raise UserError(f"--output={args.output} must end with {' or '.join(command.suffixes)}.")
  inputs = list_inputs(args.input, args.image_column, args.image_root, _text_columns(args))
  model = load(
      args.checkpoint, args.step, args.image_tokenizer, args.text_tokenizer, args.batch_size
  )
  journal = Journal(args.output, _request(args, model, inputs), _targets(args, inputs))
  if journal.is_finished:
    print(f"{args.command}: finished before, see {args.output}")
    return
  try:
    _predict_all(args, model, inputs, journal)
    rows = journal.read()
    errors = rows["error"]
    command.write(args, inputs, errors, rows)
    journal.finish()
  except OSError as error:
    raise UserError(f"{args.output} cannot be written ({error}); name another --output.") from error
  unread = np.count_nonzero(errors)
  beside = f"; {unread} could not be read, see their errors there" if unread else ""
  print(f"{args.output}: {args.command} of {len(errors) - unread} picture(s){beside}")


def _text_columns(args: argparse.Namespace) -> dict[str, str]:
  """The columns of the texts that a report is written after, by their names in --documents."""
  if args.command != "report":
    return {}
  parts = parse_written_form(args.documents, "--documents").parts[:-1]
  named = cli.parse_columns(args.columns) if args.columns else {}
  if unknown := [key for key in named if key not in parts or key in IMAGE_PARTS]:
    raise UserError(
        f"--columns names {unknown[0]!r}, which is no text before the last of"
        f" --documents={args.documents!r}; leave it out."
    )
  return {part: named.get(part, part) for part in parts if part not in IMAGE_PARTS}


def _request(args: argparse.Namespace, model: Model, inputs: Inputs) -> dict[str, Any]:
  """What the results depend on, by the names of arguments."""
  listed = [*zip(inputs.names, map(str, inputs.paths), *inputs.texts.values(), strict=True)]
  request = {
      "command": args.command,
      "checkpoint": str(args.checkpoint.resolve()),
      "step": model.step,
      "image_tokenizer": model.image_tokenizer.fingerprint,
      "input": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
  }
  if args.command == "report":
    request["text_tokenizer"] = model.text_tokenizer.fingerprint
  return request | {name: getattr(args, name) for name in COMMANDS[args.command].settings}


def _targets(args: argparse.Namespace, inputs: Inputs) -> list[pathlib.Path]:
  """What will be written."""
  if args.command == "report":
    is_rexrank = inputs.cases is not None or args.output.suffix == ".json"
    return [args.output.with_suffix(suffix) for suffix in (".csv", ".json")[: 1 + is_rexrank]]
  return [args.output] if COMMANDS[args.command].suffixes else [args.output / _TABLE]


def _predict_all(
    args: argparse.Namespace, model: Model, inputs: Inputs, journal: Journal
) -> None:
  """Goes on from what the journal has."""
  count = len(inputs.paths)
  with (
      progress(total=count, initial=journal.done, desc=args.command, unit="picture") as bar,
      concurrent.futures.ThreadPoolExecutor(available_cpus()) as pool,
  ):

    def read(number: int) -> tuple[np.ndarray | None, str]:
      try:
        return model.pixels(inputs.paths[number]), ""
      except UserError as error:
        return None, str(error)

    while journal.done < count:
      numbers = range(journal.done, min(journal.done + args.batch_size, count))
      pixels, errors = zip(*pool.map(read, numbers), strict=True)
      rows: Rows = {"error": np.array(errors)}
      if good := [number for number, error in zip(numbers, errors, strict=True) if not error]:
        batch = Batch(
            pixels=np.stack([read for read in pixels if read is not None]),
            numbers=good,
            names=[_file_name(number, inputs.names[number]) for number in good],
            texts={name: [of[number] for number in good] for name, of in inputs.texts.items()},
        )
        rows |= COMMANDS[args.command].predict(model, batch, args)
      journal.append(rows)
      bar.update(len(numbers))


def _file_name(number: int, name: str) -> str:
  """Of the result of one input, apart from that of any other."""
  stem = re.sub(r"[^\w.-]", "_", pathlib.PurePosixPath(name).stem)
  return f"{number:06d}_{stem[:100]}"


def _report(model: Model, batch: Batch, args: argparse.Namespace) -> Rows:
  reports = model.generate_reports(
      batch.pixels, args.mask_ratio, args.seed, args.documents, batch.texts
  )
  return {"report": np.array(reports)}


def _write_reports(
    args: argparse.Namespace, inputs: Inputs, errors: np.ndarray, rows: Rows
) -> None:
  """The CSV, and the ReXrank JSON where that is asked for or was given."""
  output, written = args.output, parse_written_form(args.documents, "--documents").parts[-1]
  reports = _spread(errors, rows.get("report", np.array([], str)), "")
  columns = {"input": inputs.names, "image": inputs.paths, written: reports, "error": errors}
  write_whole(output.with_suffix(".csv"), _csv(columns | inputs.texts))
  if inputs.cases is None and output.suffix != ".json":
    return
  cases: dict[str, dict[str, Any]] = {}
  for number, (name, path, report, error) in enumerate(zip(*columns.values(), strict=True)):
    blank = {"image_path": [str(path)], "key_image_path": str(path), "context": "",
             "section_findings": "", "section_impression": ""}  # fmt: skip
    if inputs.cases is None:
      given = blank | {key: texts[number] for key, texts in inputs.texts.items()}
      name = name if name not in cases else f"{name}:{number}"  # A picture of several questions.
    else:
      given = inputs.cases[name]
    cases[name] = {**given, "model_prediction": str(report)}
    if error:
      cases[name]["error"] = str(error)
  write_whole(output.with_suffix(".json"), json.dumps(cases, indent=2))


def _embed(model: Model, batch: Batch, args: argparse.Namespace) -> Rows:
  return {"embedding": model.embed(batch.pixels, args.layers)}


def _write_embeddings(
    args: argparse.Namespace, inputs: Inputs, errors: np.ndarray, rows: Rows
) -> None:
  """The npz: `embeddings` (N, layers, D), not a number where there is an error; inputs, errors."""
  embeddings = _spread(errors, rows.get("embedding", np.zeros((0, 0, 0), np.float32)), np.nan)
  arrays = io.BytesIO()
  np.savez(
      arrays, allow_pickle=False,
      embeddings=embeddings, inputs=np.array(inputs.names), errors=errors,
  )  # fmt: skip
  write_whole(args.output, arrays.getvalue())


def _classify(model: Model, batch: Batch, args: argparse.Namespace) -> Rows:
  probabilities = model.classify(batch.pixels)
  assert model.config.classifier is not None
  names = [f"finding:{name}" for name in model.config.classifier.findings]
  return dict(zip(names, probabilities.T, strict=True))


def _write_findings(
    args: argparse.Namespace, inputs: Inputs, errors: np.ndarray, rows: Rows
) -> None:
  """The CSV: a column of probabilities for each finding, empty where there is an error."""
  found = {
      name.removeprefix("finding:"): [
          "" if np.isnan(value) else f"{value:.6f}" for value in _spread(errors, values, np.nan)
      ]
      for name, values in rows.items()
      if name.startswith("finding:")
  }
  columns = {"input": inputs.names, "image": inputs.paths, **found, "error": errors}
  write_whole(args.output, _csv(columns))


def _inpaint(model: Model, batch: Batch, args: argparse.Namespace) -> Rows:
  grid = model.image_tokenizer.grid
  masks = np.stack([
      draw_mask(args.mask, args.mask_ratio, grid, args.seed, number).reshape(grid)
      for number in batch.numbers
  ])
  filled = model.inpaint(batch.pixels, masks, args.method)
  pictures = [
      side_by_side([original, hide(original, mask), drawn])
      for original, mask, drawn in zip(_uint8(batch.pixels), masks, filled, strict=True)
  ]
  return _write_pictures(args.output, batch, pictures)


def _surprise(model: Model, batch: Batch, args: argparse.Namespace) -> Rows:
  found = model.token_surprise(batch.pixels, args.radius)
  side = 2 * args.radius + 1
  titles = ("given all that precedes", f"without the {side} x {side} neighbourhood")
  pictures = [
      surprise_map(original, dict(zip(titles, maps, strict=True)))
      for original, *maps in zip(_uint8(batch.pixels), *found, strict=True)
  ]
  return _write_pictures(args.output, batch, pictures)


def _write_pictures(output: pathlib.Path, batch: Batch, pictures: list[bytes]) -> Rows:
  output.mkdir(parents=True, exist_ok=True)
  names = [f"{name}.png" for name in batch.names]
  for name, picture in zip(names, pictures, strict=True):
    write_whole(output / name, picture)
  return {"picture": np.array(names)}


def _write_table(
    args: argparse.Namespace, inputs: Inputs, errors: np.ndarray, rows: Rows
) -> None:
  """pictures.csv beside the pictures."""
  names = _spread(errors, rows.get("picture", np.array([], str)), "")
  args.output.mkdir(parents=True, exist_ok=True)
  columns = {"input": inputs.names, "image": inputs.paths, "picture": names, "error": errors}
  write_whole(args.output / _TABLE, _csv(columns))


def _uint8(pixels: np.ndarray) -> np.ndarray:
  """The bytes that pixels in [-1, 1] were read from."""
  return np.rint((pixels + 1) * 127.5).astype(np.uint8)


def _spread(errors: np.ndarray, values: np.ndarray, missing: Any) -> np.ndarray:
  """The values (n, …) at the n places without an error, `missing` elsewhere."""
  spread = np.full((len(errors), *values.shape[1:]), missing, values.dtype)
  spread[errors == ""] = values
  return spread


def _csv(columns: dict[str, Any]) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(zip(*columns.values(), strict=True))
  return text.getvalue()


COMMANDS = {
    "report": Command(
        ("mask_ratio", "seed", "documents"), (".csv", ".json"), _report, _write_reports
    ),
    "classify": Command((), (".csv",), _classify, _write_findings),
    "embed": Command(("layers",), (".npz",), _embed, _write_embeddings),
    "inpaint": Command(("mask", "mask_ratio", "method", "seed"), (), _inpaint, _write_table),
    "surprise": Command(("radius",), (), _surprise, _write_table),
}
"""Name -> prediction."""


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.predict",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  texts = {
      "report": "reports or answers, as CSV, and as ReXrank JSON where --input or --output is one",
      "classify": "probabilities of findings, of a model trained with a classifier, as CSV",
      "embed": "mean hidden states of the pictures, as npz",
      "inpaint": "a folder of PNG: original, masked and filled in side by side",
      "surprise": "a folder of PNG: -log p of each image token over the radiograph",
  }
  parsers = {name: commands.add_parser(name, help=text) for name, text in texts.items()}
  for subparser in parsers.values():
    _add_common_arguments(subparser)
  ratio = "share of the picture's codes that is hidden; default: %(default)s"
  parsers["report"].add_argument("--mask-ratio", type=float, default=0.0, help=ratio)
  parsers["report"].add_argument(
      "--documents", default="image report",
      help="a form that the model was trained on, such as 'image (question) answer': its last part"
      " is written, its other texts are columns of the CSV or JSON; default: %(default)s",
  )  # fmt: skip
  parsers["report"].add_argument(
      "--columns", help="where they have other names: question=COLUMN,indication=COLUMN"
  )
  parsers["inpaint"].add_argument(
      "--mask-ratio", type=float, default=0.5, help=f"{ratio}; of lungs, of their codes"
  )
  for name in ("report", "inpaint"):
    parsers[name].add_argument("--seed", type=int, default=0, help="of what is hidden")
  parsers["embed"].add_argument(
      "--layers", type=_layers, help="such as 7,8,9, from 0 (token embeddings); default: all"
  )
  parsers["inpaint"].add_argument(
      "--mask", choices=MASK_SHAPES, default="random",
      help="what is hidden; lungs are where they usually lie; default: %(default)s",
  )  # fmt: skip
  parsers["inpaint"].add_argument("--method", choices=METHODS, default="sequential")
  parsers["surprise"].add_argument(
      "--radius", type=int, default=1, help="of the hidden neighbourhood; default: %(default)s"
  )
  args = parser.parse_args(argv)
  if args.batch_size < 1:
    raise UserError(f"--batch_size={args.batch_size} must be 1 or more.")
  if getattr(args, "seed", 0) < 0:
    raise UserError(f"--seed={args.seed} must not be negative.")
  warn_if_accelerator_unused()
  run(args)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
  path = pathlib.Path
  parser.add_argument(
      "--checkpoint", type=path, required=True, help="--output of train or convert"
  )
  parser.add_argument("--step", type=int, help=cli.STEP_HELP)
  parser.add_argument(
      "--input", type=path, required=True,
      help="a PNG, JPEG or DICOM file, a folder, a CSV, or a ReXrank JSON",
  )  # fmt: skip
  parser.add_argument("--output", type=path, required=True)
  parser.add_argument(
      "--image_column", help="of the CSV; default: image_path, path or image"
  )
  parser.add_argument(
      "--image_root", type=path, help="where paths of CSV or JSON start; default: their folder"
  )
  for name in ("image_tokenizer", "text_tokenizer"):
    parser.add_argument(f"--{name}", type=path, help="default: that in --checkpoint")
  parser.add_argument("--batch_size", type=int, default=8, help="pictures of a pass")


def _layers(text: str) -> list[int]:
  try:
    return [int(number) for number in text.split(",")]
  except ValueError as error:
    raise UserError(
        f"--layers={text} must be numbers with commas between, such as 7,8,9."
    ) from error


if __name__ == "__main__":
  cli.entry(main)
