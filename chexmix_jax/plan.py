"""python -m chexmix_jax.plan --config=… --topology=v5e:16x16: does it fit, and how fast is it?

Compiles the real training step for TPUs on any machine; of GPUs it reckons from the shapes alone.
--topology=cards prints which ways to fine-tune fit graphics cards of 12 to 80 GB.
"""

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from chexmix_jax import cli
from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}  # fmt: skip
"""With these libtpu only compiles: it looks for no TPU here, and lets others do so beside it."""

_GIB = 2**30


def main(argv: list[str] | None = None) -> None:
  """Prints the plan of a config on a topology, or of the best of its neighbours."""
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.plan", description=__doc__)
  parser.add_argument("--topology", required=True, help="such as v5e:16x16, H100:8, local or cards")
  parser.add_argument("--slices", type=int, default=1, help="TPU slices, joined by the network")
  parser.add_argument("--search", action="store_true", help="rank other remat, batches and meshes")
  parser.add_argument("--compile", type=int, default=4, help="of --search, how many to compile")
  parser.add_argument("--generate", action="store_true", help="plan generation, not training")
  parser.add_argument("--batch", type=int, default=8, help="of --generate, rows")
  parser.add_argument("--prompt", type=int, default=1027, help="of --generate, tokens")
  parser.add_argument("--new", type=int, default=256, help="of --generate, tokens after the prompt")
  parser.add_argument("--json", action="store_true", help="print JSON")
  args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
  for name in ("slices", "compile", "batch", "prompt", "new"):
    if getattr(args, name) < 1:
      raise UserError(f"--{name}={getattr(args, name)} must be 1 or more.")
  if args.topology == "cards" and (args.search or args.generate or args.slices > 1):
    parser.error("--topology=cards goes without --search, --generate and --slices")
  if args.topology != "local":
    for name, value in ENVIRONMENT.items():
      os.environ.setdefault(name, value)
  # jax reads the environment when it is imported.
  from chexmix_jax.planning import cards, generation, target, training
  from chexmix_jax.tokenizers.vocabulary import Vocabulary
  from chexmix_jax.training.setup import TrainConfig

  values, rest = cli.load_config(rest, schema=TrainConfig)
  if rest:
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  config = config_lib.build(TrainConfig, values.to_dict())
  if config.model.vocab_size == 0:
    model = dataclasses.replace(config.model, vocab_size=Vocabulary.published().size)
    config = dataclasses.replace(config, model=model)
  if args.topology == "cards":
    ways = _told(cards.ways(config))
    peaks = cards.measure(config, target.find_target(cards.TOPOLOGY), ways)
    _print(args.json, [cards.to_dict(config, peaks)], _card_lines)
    return
  devices = target.find_target(args.topology, args.slices)
  if args.generate:
    plans = generation.plan_generation(config, devices, args.batch, args.prompt, args.new)
    _print(args.json, [plan.to_dict() for plan in plans], _generation_lines)
    return
  if args.search:
    configs = training.ranked(config, devices)[: args.compile]
    found = [training.plan_training(each, devices) for each in _told(configs)]
    found.sort(key=lambda p: (not p.fits, p.time.seconds if p.time else 0.0))
    _print(args.json, [plan.to_dict() for plan in found], _table_lines)
    return
  plan = training.plan_training(config, devices)
  result = plan.to_dict()
  if not plan.fits:
    for other in _told(training.ranked(config, devices, nearest=True)[: args.compile]):
      near = training.plan_training(other, devices)
      if near.fits:
        result["nearest"] = near.to_dict()
        break
  _print(args.json, [result], _training_lines)


def _told(configs: list[Any]) -> list[Any]:
  """The same, with a bar."""
  from chexmix_jax.progress import progress

  return progress(configs, desc="compile", unit="plan", leave=False)


def _print(as_json: bool, results: list[dict[str, Any]], lines: Any) -> None:
  if as_json:
    print(json.dumps(results if len(results) != 1 else results[0], indent=2))
  else:
    print("\n".join(lines(results)))


def _settings(plan: dict[str, Any]) -> str:
  mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
  return f"mesh {mesh}, accumulation {plan['accumulation']}, remat {plan['remat']}"


def _training_lines(results: list[dict[str, Any]]) -> list[str]:
  (plan,) = results
  memory = plan["memory"]
  room = 1 - memory["peak"] / memory["capacity"]
  how = "compiled" if "compile_seconds" in plan else "by shape arithmetic"
  lines = [
      f"{plan['topology']}: {plan['devices']} devices in {plan['slices']} slice(s), {how}",
      f"{plan['batch_size']} rows of {plan['context']:,} tokens a step; {_settings(plan)}",
      "memory of a device",
      *(
          f"  {name:12} {memory[name] / _GIB:8.2f} GiB"
          for name in ("parameters", "optimizer", "activations", "peak", "capacity")
      ),
      f"  {'fits' if memory['fits'] else 'DOES NOT FIT'}, {room:.0%} free",
  ]
  if "collectives" in plan:
    lines.append("collectives of a device and step")
    lines += [
        f"  {c['kind']:18} among {c['devices']:4}: {c['count']:6.0f} times, {c['bytes'] / 1e9:8.2f}"
        " GB sent"
        for c in plan["collectives"]
    ]
  if "flops" in plan:
    lines.append(f"operations {plan['flops']:.3g}, memory traffic {plan['bytes'] / 1e9:.1f} GB")
  if "time" in plan:
    time = plan["time"]
    parts = ", ".join(f"{n} {time[n]:.3f} s" for n in ("compute", "memory", "links", "network"))
    lines += [
        f"roofline: {parts}",
        f"step {time['step']:.3f} s where all overlaps (bound by {time['bound']}),"
        f" {time['step_without_overlap']:.3f} s where nothing does",
        f"MFU {time['mfu']:.0%} and {time['mfu_without_overlap']:.0%};"
        f" {time['tokens_per_second_per_device']:,.0f} tokens/s a device at most",
    ]
  if "compile_seconds" in plan:
    lines.append(f"compiled in {plan['compile_seconds']:.0f} s")
  if "nearest" in plan:
    lines += ["", "the nearest settings that fit:", *_training_lines([plan["nearest"]])]
  elif not memory["fits"]:
    lines.append("no settings near these fit; take more devices or a smaller data.batch_size")
  return lines


def _table_lines(results: list[dict[str, Any]]) -> list[str]:
  lines = [f"{'peak':>10} {'free':>5} {'step':>9} {'no overlap':>10} {'MFU':>5}  settings"]
  for plan in results:
    memory, time = plan["memory"], plan.get("time")
    peak, room = memory["peak"] / _GIB, 1 - memory["peak"] / memory["capacity"]
    columns = f"{peak:6.2f} GiB {room:5.0%}"
    if time:
      columns += f" {time['step']:7.3f} s {time['step_without_overlap']:8.3f} s {time['mfu']:5.0%}"
    else:
      columns += f" {'does not fit':>26}"
    lines.append(f"{columns}  {_settings(plan)}")
  return lines if results else ["no settings fit; take more devices or a smaller data.batch_size"]


def _generation_lines(results: list[dict[str, Any]]) -> list[str]:
  lines = []
  for plan in results:
    memory = plan["memory"]
    lines.append(
        f"{plan['program']:8} {plan['batch']} rows, peak {memory['peak'] / _GIB:.2f} of"
        f" {memory['capacity'] / _GIB:.2f} GiB ({'fits' if memory['fits'] else 'DOES NOT FIT'})"
    )
    if time := plan.get("time"):
      lines[-1] += (
          f", {time['step']:.4f} s at least (bound by {time['bound']}),"
          f" {time['tokens_per_second']:,.0f} tokens/s at most"
      )
  return lines


def _card_lines(results: list[dict[str, Any]]) -> list[str]:
  (found,) = results
  usual, most, columns = found["usual_share"], found["largest_share"], found["cards"]
  width = max(len(way["way"]) for way in found["ways"])
  lines = [f"{'':{width}} {'peak':>10}" + "".join(f"{card:>8}" for card in columns)]
  for way in found["ways"]:
    line = f"{way['way']:{width}} {way['peak'] / _GIB:6.2f} GiB"
    for card in columns.values():
      free = card["free"][way["way"]]
      cell = f"{free:.0%}{'' if free >= 1 - usual else '*'}"
      line += f"{cell if card['fits'][way['way']] else 'no':>8}"
    lines.append(line)
  like = ", ".join(f"{c['like']} {c['capacity'] / _GIB:.1f}" for c in columns.values())
  lines += [
      "",
      f"{found['batch_size']} rows of {found['context']:,} tokens a step; % of a card stay free",
      f"cards: {like} GiB",
      f"no: needs more than {most:.0%} of the card",
      f"*:  fits with XLA_PYTHON_CLIENT_MEM_FRACTION={most}; by itself jax takes {usual:.0%}",
      f"Compiled for a TPU ({found['compiled_for']}): for GPUs an estimate, not measured on one.",
  ]
  for card, facts in columns.items():
    if facts["nearest"] is None:
      lines.append(f"{card}: nothing here fits; take a smaller data.context or a larger card")
    elif facts["nearest"]["way"] != found["own"]:
      lines.append(f"{card}: the config does not fit; the nearest: {facts['nearest']['settings']}")
  return lines


if __name__ == "__main__":
  cli.entry(main)
