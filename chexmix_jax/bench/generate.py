"""Times greedy generation, alone or beside Hugging Face's Phi with the same weights.

Beside Hugging Face's own cache also, for the small random model, the way of the published inference
package, which runs the whole sequence again for every token. Each has a process of its own.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from chexmix_jax.bench.process import Process, peak_memory
from chexmix_jax.bench.small import SMALL
from chexmix_jax.conversion.phi import config_to_torch, params_to_torch
from chexmix_jax.errors import UserError
from chexmix_jax.inference.generate import GenerateConfig, generate
from chexmix_jax.inference.model import load_model
from chexmix_jax.models.transformer import TransformerConfig, init_params
from chexmix_jax.models.unstack import unstack_layers
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


@dataclasses.dataclass(frozen=True)
class _Generator:
  """Gives new ids.

  Attributes:
    run: so many of each row, (B, number).
    description: of the model.
  """

  run: Callable[[int], np.ndarray]
  description: str

  def describe(self) -> str:
    return self.description

  def timed(self, number: int) -> tuple[float, np.ndarray]:
    """Seconds, and the ids."""
    start = time.perf_counter()
    new = self.run(number)
    return time.perf_counter() - start, new


def _random_params(config: TransformerConfig):
  return jax.jit(functools.partial(init_params, config))(jax.random.key(0))


def _ours(case: Case) -> _Generator:
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

  return _Generator(run, f"{config.num_layers} layers, width {config.width}, {config.dtype}")


def _theirs(case: Case, use_cache: bool = True) -> _Generator:
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

  return _Generator(cached if use_cache else uncached, str(model.dtype))


_KINDS: dict[str, Callable[[Case], _Generator]] = {
    "chexmix_jax": _ours,
    "transformers": _theirs,
    "no cache": functools.partial(_theirs, use_cache=False),
}


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
    processes = {kind: stack.enter_context(Process(_KINDS[kind], case)) for kind in kinds}
    _measure(processes, args)


def _measure(processes: dict[str, Process], args: argparse.Namespace) -> None:
  ours = processes["chexmix_jax"]
  ours.call(_Generator.timed, 1)  # Compiles, as does the next.
  ours.call(_Generator.timed, args.new)
  first: dict[str, list[float]] = {name: [] for name in processes}
  whole: dict[str, list[float]] = {name: [] for name in processes}
  same = {}
  for _ in range(args.rounds):
    for name, process in processes.items():
      first[name].append(process.call(_Generator.timed, 1)[0])
      seconds, new = process.call(_Generator.timed, args.new)
      whole[name].append(seconds)
      if name == "chexmix_jax":
        expected = new
      same[name] = np.mean(new == expected)
  print(
      f"{ours.call(_Generator.describe)}, batch {args.batch}, prompt {args.prompt}, {args.new} new"
      f" tokens, {jax.default_backend()}"
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
        f" {process.call(peak_memory) / 1e9:.2f} GB"
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
