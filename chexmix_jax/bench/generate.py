"""Times greedy generation, alone or beside Hugging Face's Phi with the same weights.

Beside Hugging Face's own cache also, for the small random model, the way of the published inference
package, which runs the whole sequence again for every token. Each has a process of its own.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import multiprocessing
import pathlib
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np

from chexmix_jax.bench.small import SMALL
from chexmix_jax.conversion.phi import config_to_torch, params_to_torch
from chexmix_jax.errors import UserError
from chexmix_jax.inference.generate import GenerateConfig, generate
from chexmix_jax.inference.model import load_model
from chexmix_jax.models.transformer import TransformerConfig, init_params, unstack_layers
from chexmix_jax.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Case:
  """What is timed.

  Attributes:
    model: of random weights, where no checkpoint is given.
    checkpoint: of ours; with `torch`, the same weights in a folder of Hugging Face's.
    prompts: int (B, T).
  """

  model: TransformerConfig
  checkpoint: pathlib.Path | None
  torch: pathlib.Path | None
  prompts: np.ndarray


Generator = Callable[[int], np.ndarray]
"""Gives that many new ids of each row, (B, number)."""


def _random_params(config: TransformerConfig):
  return jax.jit(functools.partial(init_params, config))(jax.random.key(0))


def _ours(case: Case) -> tuple[Generator, str]:
  if case.checkpoint is None:
    config, params = case.model, unstack_layers(_random_params(case.model))
    half = config.vocab_size // 2
    vocabulary = Vocabulary.sentencepiece(num_text=half, num_codes=half - 5)
  else:
    loaded = load_model(case.checkpoint)
    config, params, vocabulary = loaded.config, loaded.params, loaded.vocabulary
  lengths = np.full(*case.prompts.shape)

  def run(number):
    options = GenerateConfig(max_new=number, stop_ids=(), text_only=False)
    return generate(config, params, vocabulary, case.prompts, lengths, options)

  return run, f"{config.num_layers} layers, width {config.width}, {config.dtype}"


def _theirs(case: Case, use_cache: bool = True) -> tuple[Generator, str]:
  """The same weights in PhiForCausalLM."""
  import torch
  import transformers

  if case.torch is None:
    settings = config_to_torch(case.model, eot=0, context=2048)
    model = transformers.PhiForCausalLM(transformers.AutoConfig.for_model(**settings))
    tensors = params_to_torch(case.model, _random_params(case.model))
    model.load_state_dict({name: torch.tensor(read()) for name, _, read in tensors})
  else:
    model = transformers.AutoModelForCausalLM.from_pretrained(case.torch, dtype="auto")
  model.eval()
  ids = torch.tensor(case.prompts, dtype=torch.long)

  @torch.no_grad()
  def cached(number):
    new = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=number, min_new_tokens=number,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return new[:, ids.shape[1] :].numpy()

  @torch.no_grad()
  def uncached(number):
    rows = ids
    for _ in range(number):
      best = model(rows, use_cache=False).logits[:, -1].argmax(-1)
      rows = torch.cat([rows, best[:, None]], dim=1)
    return rows[:, ids.shape[1] :].numpy()

  return (cached if use_cache else uncached), str(model.dtype)


_KINDS: dict[str, Callable[[Case], tuple[Generator, str]]] = {
    "chexmix_jax": _ours,
    "transformers": _theirs,
    "no cache": functools.partial(_theirs, use_cache=False),
}


def _serve(connection: Connection, kind: str, case: Case) -> None:
  """Answers a number of tokens with seconds and ids, and None with the peak memory in bytes."""
  try:
    run, description = _KINDS[kind](case)
    connection.send(description)
    while (number := connection.recv()) is not None:
      start = time.perf_counter()
      new = run(number)
      connection.send((time.perf_counter() - start, new))
    connection.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
  except UserError as error:
    connection.send(error)


class _Process:
  """One of _KINDS in a process of its own."""

  def __init__(self, kind: str, case: Case):
    context = multiprocessing.get_context("spawn")
    self._connection, other = context.Pipe()
    self.process = context.Process(target=_serve, args=(other, kind, case), daemon=True)
    self.process.start()
    other.close()
    self.description = self._receive()

  def ask(self, number: int | None) -> Any:
    self._connection.send(number)
    return self._receive()

  def _receive(self) -> Any:
    answer = self._connection.recv()
    if isinstance(answer, UserError):
      raise answer
    return answer


def main(argv: list[str]) -> None:
  """Prints tokens a second, medians over the rounds, in which all take their turns.

  Also how long the first token takes, which is the prompt's price, each one after it, and the peak
  of the memory. What others say is compared with our ids.
  """
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.bench generate", description=__doc__)
  parser.add_argument("--rounds", type=int, default=5, help="timed runs of each")
  parser.add_argument(
      "--against", choices=["transformers"], help="also time Hugging Face's PhiForCausalLM"
  )
  parser.add_argument("--checkpoint", type=pathlib.Path, help="default: a small random model")
  parser.add_argument(
      "--torch", type=pathlib.Path, help="what `convert to_torch` made of the checkpoint"
  )
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--prompt", type=int, default=260)
  parser.add_argument("--new", type=int, default=60, help="tokens, 2 or more")
  args = parser.parse_args(argv)
  if min(args.rounds, args.batch, args.prompt, args.new - 1) < 1:
    raise UserError("--rounds, --batch and --prompt must be 1 or more, and --new 2 or more.")
  if args.against and (args.checkpoint is None) != (args.torch is None):
    raise UserError("--checkpoint and --torch go together: both in the two forms of one model.")
  for name in ("torch", "transformers") if args.against else ():
    if importlib.util.find_spec(name) is None:
      raise UserError(
          f"--against=transformers needs {name}; pip install torch==2.13.0 transformers==5.23."
      )
  shape = args.batch, args.prompt
  prompts = np.random.default_rng(0).integers(0, SMALL.vocab_size, shape, np.int32)
  case = Case(SMALL, args.checkpoint, args.torch, prompts)
  kinds = [*_KINDS][: 1 if not args.against else 3 if args.checkpoint is None else 2]
  with contextlib.ExitStack() as stack:
    processes = {}
    for kind in kinds:
      processes[kind] = _Process(kind, case)
      stack.callback(processes[kind].process.kill)
    _measure(processes, args)


def _measure(processes: dict[str, _Process], args: argparse.Namespace) -> None:
  ours = processes["chexmix_jax"]
  ours.ask(1)  # Compiles, as does the next.
  ours.ask(args.new)
  first: dict[str, list[float]] = {name: [] for name in processes}
  whole: dict[str, list[float]] = {name: [] for name in processes}
  same = {}
  for _ in range(args.rounds):
    for name, process in processes.items():
      first[name].append(process.ask(1)[0])
      seconds, new = process.ask(args.new)
      whole[name].append(seconds)
      if name == "chexmix_jax":
        expected = new
      same[name] = np.mean(new == expected)
  print(
      f"{ours.description}, batch {args.batch}, prompt {args.prompt}, {args.new} new tokens,"
      f" {jax.default_backend()}"
  )
  steps = {
      name: [(b - a) / (args.new - 1) for a, b in zip(first[name], whole[name], strict=True)]
      for name in processes
  }
  for name, process in processes.items():
    print(
        f"{name:12} {args.batch * args.new / statistics.median(whole[name]):8,.2f} tokens/s: first"
        f" token {statistics.median(first[name]):.3f} s, then"
        f" {1000 * statistics.median(steps[name]):.2f} ms a step; peak memory"
        f" {process.ask(None) / 1e9:.2f} GB"
    )
  for name in [name for name in processes if name != "chexmix_jax"]:
    total, prompt, step = (
        statistics.median(b / a for a, b in zip(times["chexmix_jax"], times[name], strict=True))
        for times in (whole, first, steps)
    )
    print(
        f"speed of chexmix_jax / {name}: {total:.2f} (first token {prompt:.2f}, step {step:.2f});"
        f" {same[name]:.1%} of the ids are the same"
    )
