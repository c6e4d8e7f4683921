"""python -m chexmix_jax.model_card --checkpoint=RUN --output=CARD.md: what to publish with weights.

Settings, data, scores with their intervals and signatures, intended use, limits and licences, of a
run and, where they are named, of its studies and its evaluations. Folders are named without the
paths that lead to them.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.data import studies as studies_lib
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.sections import Found, read_found
from chexmix_jax.evaluation.summary import cells, summary_rows
from chexmix_jax.files import check_place, write_whole
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.training.base import base_dir
from chexmix_jax.training.checkpoint import ranked_steps, read_job
from chexmix_jax.training.logging import read_metrics
from chexmix_jax.training.trainable import count_trained

_USE = """\
## Intended use

Research on radiographs and their reports. **Not for clinical use**: it was not tested on patients,
and neither a report that it writes nor a picture that it fills in says anything about one.

## Limits

- Scores are of the split and the labels that their signatures name. Labels that rules read from
  reports are wrong at times. Intervals are over the scored patients; they do not hold what another
  training seed would give.
- A report may name findings that are not there and leave out those that are; the scores say how
  often.
- Attention is causal: an image token never sees what lies after it, so filling in the top of a
  picture cannot use the bottom.
- What the training data lacks (places, scanners, ages, findings), the model has not learned.
"""


def write_card(
    checkpoint: pathlib.Path,
    output: pathlib.Path,
    studies: Sequence[pathlib.Path] = (),
    evaluation: pathlib.Path | None = None,
) -> None:
  """Writes the card of a run's checkpoint as Markdown, its best with validations, else its newest.

  `studies` are outputs of prepare, `evaluation` is one of evaluate. Raises UserError for folders
  that are none of these, and for an evaluation of another checkpoint.
  """
  check_place(output)
  job = read_job(checkpoint)
  steps = ranked_steps(checkpoint)
  if not steps:
    raise UserError(f"{checkpoint} has no checkpoint; train it first.")
  parts = [
      f"# {checkpoint.name}, step {steps[-1]:,}",
      "CheXmix in JAX (`chexmix_jax`). **Research only, not for clinical use.**",
      "## Model", _table(_model_rows(job)),
      "## Training", _table(_training_rows(job, checkpoint)),
      "## Data", _table(_data_rows(job, studies)),
  ]  # fmt: skip
  if evaluation is not None:
    found = read_found(evaluation, "name a folder that evaluate wrote.")
    name = f"checkpoint:{checkpoint.name}@{steps[-1]}"
    if not all(name in signature.split("|") for signature in found.signatures.values()):
      raise UserError(f"{evaluation} is not of {name}; evaluate that into a folder of its own.")
    parts += ["## Scores", *_scores(found)]
  parts += [_USE, "## Licences", *_notices(checkpoint)]
  write_whole(output, "\n\n".join(part.strip() for part in parts) + "\n")
  print(f"{output} is written.")


def _model_rows(job: dict[str, Any]) -> Iterator[tuple[str, str]]:
  settings = job["train"]["model"]
  config = config_lib.build(TransformerConfig, settings, "job.json: model")
  trained, total = count_trained(config)
  yield "parameters", f"{total:,}"
  shape = f"{config.num_layers} layers of width {config.width}, {config.num_heads} heads"
  yield "shape", f"{shape}, MLP {config.mlp_dim}, {config.vocab_size:,} ids"
  if adapter := settings.get("adapter"):
    yield "adapter", (
        f"{adapter['kind']}, rank {adapter['rank']}, alpha {adapter['alpha']:g}, on"
        f" {', '.join(adapter['targets']) or 'nothing'}; base in {adapter['base']};"
        f" {trained:,} parameters are trained"
    )
    base = job["base"]
    name = _name(job["train"]["init"])
    yield "base", f"{name}, step {base['step']}, job {base['job_sha256'][:8]}"
  for kind in ("image", "text"):
    if fingerprint := job["tokens"].get(f"{kind}_tokenizer"):
      yield f"{kind} tokenizer", f"sha256 {fingerprint[:16]}"


def _training_rows(job: dict[str, Any], checkpoint: pathlib.Path) -> Iterator[tuple[str, str]]:
  train = job["train"]
  if "data" not in train:
    yield "training", "none by chexmix_jax: converted"
    return
  data, optimizer = train["data"], train["optimizer"]
  yield "start", _name(train["init"]) if train["init"] else "fresh parameters"
  yield "steps", f"{train['steps']:,} of {data['batch_size']} rows of {data['context']:,} tokens"
  if validation := train.get("validation"):
    yield "checkpoint", f"of all validated ones the best by {validation['metric']} of the val split"
  yield "documents", data["documents"]
  for modality, mask in data["masking"].items():
    hidden = f"{mask['prob']:.0%} of the documents masked at {mask['low']:g} to {mask['high']:g}"
    loss = f"loss on {mask['loss_on']} targets, weight {mask['weight']:g}"
    yield modality, f"{hidden if mask['prob'] else 'never masked'}; {loss}"
  yield "optimizer", (
      f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g},"
      f" {optimizer['warmup_steps']} steps of warm-up, weight decay {optimizer['weight_decay']:g}"
  )
  yield "seed", str(train["seed"])
  if lines := read_metrics(checkpoint):
    last = lines[-1]
    names = [name for name in ("loss", "image_nll", "text_nll") if name in last]
    yield "last steps", ", ".join(f"{name} {last[name]:.3f}" for name in names)
    yield "steps skipped", str(last["skipped"])


def _data_rows(
    job: dict[str, Any], folders: Sequence[pathlib.Path]
) -> Iterator[tuple[str, str]]:
  requests = job["tokens"].get("request", [])
  for request in requests if isinstance(requests, list) else [requests]:
    made = request["studies"]
    yield "source", f"{made['source']}, pictures of {made['size']} pixels"
  for folder in folders:
    card = studies_lib.read_card(folder)
    splits = ", ".join(f"{count:,} {name}" for name, count in card["splits"].items())
    account = card["account"]["studies"]
    yield f"{card['request']['source']}, studies", f"{splits}; {account['refused']:,} left out"


def _scores(found: Found) -> Iterator[str]:
  lines = [("figure", "value", "95 % interval", "baselines")]
  for heading, rows in summary_rows(found.values).items():
    for row in rows:
      (number,), _, baselines = cells(row, [found.values])
      ends = found.intervals.get(row.evaluation, {}).get(row.figure)
      between = f"{ends[0]:.{row.digits}f} – {ends[1]:.{row.digits}f}" if ends else ""
      lines.append((f"{heading}: {row.caption}", number, between, baselines))
  yield _table(lines[1:], lines[0])
  yield "\n".join(f"- `{signature}`" for signature in found.signatures.values())


def _notices(checkpoint: pathlib.Path) -> Iterator[str]:
  """NOTICE of the run and of all that it started from."""
  yield (
      "The code is under Apache-2.0. Weights stay under the terms of what they were made from: data"
      " sets keep their licences, and so do the weights that this run started from."
  )
  place: pathlib.Path | None = checkpoint
  while place is not None:
    if (place / "NOTICE").is_file():
      yield f"Notice of `{place.name}`:"
      text = (place / "NOTICE").read_text(encoding="utf-8").strip()
      yield "\n".join(f"> {line}".rstrip() for line in text.splitlines())
    has_init = (place / "job.json").exists() and read_job(place)["train"].get("init")
    place = base_dir(place) if has_init else None


def _name(path: str) -> str:
  """The last part; what leads to it is nobody's business."""
  return pathlib.PurePath(path).name


def _table(rows: Any, head: Sequence[str] = ("", "")) -> str:
  lines = [head, ("---",) * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m chexmix_jax.model_card",
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  path = pathlib.Path
  parser.add_argument("--checkpoint", type=path, required=True, help="run or converted folder")
  parser.add_argument("--studies", type=path, action="append", default=[], help="of prepare")
  parser.add_argument("--evaluation", type=path, help="folder that evaluate wrote")
  parser.add_argument("--output", type=path, required=True, help="the Markdown file")
  args = parser.parse_args(sys.argv[1:] if argv is None else argv)
  write_card(args.checkpoint, args.output, args.studies, args.evaluation)


if __name__ == "__main__":
  cli.entry(main)
