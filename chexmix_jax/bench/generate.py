"""Times greedy generation on random weights, alone or beside Hugging Face's Phi with the same.

Beside Hugging Face's own cache also the way of the published inference package, which runs the
whole sequence again for every token.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from chexmix_jax.conversion.phi import config_to_torch, params_to_torch
from chexmix_jax.errors import UserError
from chexmix_jax.inference.generate import GenerateConfig, generate
from chexmix_jax.models.transformer import Params, TransformerConfig, init_params
from chexmix_jax.tokenizers.vocabulary import Vocabulary

# The small model that the PyTorch implementation's own times are known for.
SMALL = TransformerConfig(
    vocab_size=8192, num_layers=6, width=256, num_heads=8, mlp_dim=1024, rotary_dim=12, dropout=0.0
)
BATCH, PROMPT, NEW = 8, 260, 60

Generator = Callable[[int], np.ndarray]
"""Gives that many new ids of each row, (BATCH, number)."""


def _jax_generator(params: Params, prompts: np.ndarray) -> Generator:
  half = SMALL.vocab_size // 2
  vocabulary = Vocabulary.sentencepiece(num_text=half, num_codes=half - 5)
  lengths = np.full(BATCH, PROMPT)

  def run(number):
    options = GenerateConfig(max_new=number, stop_ids=(), text_only=False)
    return generate(SMALL, params, vocabulary, prompts, lengths, options)

  return run


def _torch_generators(params: Params, prompts: np.ndarray) -> dict[str, Generator]:
  """The same weights in PhiForCausalLM, with a cache and without."""
  try:
    import torch
    import transformers
  except ImportError as error:
    raise UserError(
        f"--against=transformers needs {error.name}; pip install torch==2.13.0 transformers==5.23."
    ) from error
  settings = config_to_torch(SMALL, eot=0, context=2048)
  model = transformers.PhiForCausalLM(transformers.AutoConfig.for_model(**settings)).eval()
  tensors = params_to_torch(SMALL, params)
  model.load_state_dict({name: torch.tensor(read()) for name, _, read in tensors})
  ids = torch.tensor(prompts, dtype=torch.long)

  @torch.no_grad()
  def cached(number):
    new = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=number, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return new[:, PROMPT:].numpy()

  @torch.no_grad()
  def uncached(number):
    rows = ids
    for _ in range(number):
      best = model(rows, use_cache=False).logits[:, -1].argmax(-1)
      rows = torch.cat([rows, best[:, None]], dim=1)
    return rows[:, PROMPT:].numpy()

  return {"transformers": cached, "no cache": uncached}


def main(argv: list[str]) -> None:
  """Prints tokens a second, medians over the rounds, in which all take their turns.

  Also how long the first token takes, which is the prompt's price, and each one after it. What
  others say is compared with our ids.
  """
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.bench generate", description=__doc__)
  parser.add_argument("--rounds", type=int, default=5, help="timed runs of each")
  parser.add_argument(
      "--against", choices=["transformers"], help="also time Hugging Face's PhiForCausalLM"
  )
  args = parser.parse_args(argv)
  params = jax.jit(functools.partial(init_params, SMALL))(jax.random.key(0))
  prompts = np.random.default_rng(0).integers(0, SMALL.vocab_size, (BATCH, PROMPT), np.int32)
  generators = {"chexmix_jax": _jax_generator(params, prompts)}
  if args.against:
    generators |= _torch_generators(params, prompts)
  for run in generators.values():
    run(1)  # Fills caches.
  ours = generators["chexmix_jax"](NEW)  # Compiles.
  same = {}
  first: dict[str, list[float]] = {name: [] for name in generators}
  whole: dict[str, list[float]] = {name: [] for name in generators}
  for _ in range(args.rounds):
    for name, run in generators.items():
      start = time.perf_counter()
      run(1)
      middle = time.perf_counter()
      new = run(NEW)
      first[name].append(middle - start)
      whole[name].append(time.perf_counter() - middle)
      same[name] = np.mean(new == ours)
  print(
      f"{SMALL.num_layers} layers, width {SMALL.width}, {SMALL.num_heads} heads, batch {BATCH},"
      f" prompt {PROMPT}, {NEW} new tokens, vocabulary {SMALL.vocab_size}, float32,"
      f" {jax.default_backend()}"
  )
  steps = {
      name: [(b - a) / (NEW - 1) for a, b in zip(first[name], whole[name], strict=True)]
      for name in generators
  }
  for name in generators:
    print(
        f"{name:12} {BATCH * NEW / statistics.median(whole[name]):8,.0f} tokens/s: first token"
        f" {statistics.median(first[name]):.3f} s, then"
        f" {1000 * statistics.median(steps[name]):.2f} ms a step"
    )
  for name in [name for name in generators if name != "chexmix_jax"]:
    total, prompt, step = (
        statistics.median(b / a for a, b in zip(times["chexmix_jax"], times[name], strict=True))
        for times in (whole, first, steps)
    )
    print(
        f"speed of chexmix_jax / {name}: {total:.2f} (first token {prompt:.2f}, step {step:.2f});"
        f" {same[name]:.1%} of the ids are the same"
    )
