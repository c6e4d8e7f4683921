"""Times the training step on random tokens, alone or beside the same model in PyTorch."""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from chexmix_jax.bench.small import SMALL
from chexmix_jax.errors import UserError
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.optimizer import OptimizerConfig, make_optimizer
from chexmix_jax.training.step import abstract_state, init_state, jit_train_step

BATCH, LENGTH = 16, 320


def _jax_stepper() -> Callable[[], object]:
  """A function that does one AdamW step in float32 and waits for it."""
  vocabulary = Vocabulary.sentencepiece(4096, 4000)
  optimizer = make_optimizer(OptimizerConfig(), 1000)
  mesh = make_mesh()
  with jax.set_mesh(mesh):
    abstract = abstract_state(SMALL, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = jax.jit(functools.partial(init_state, SMALL, optimizer), out_shardings=shardings)
    state = init(jax.random.key(0))
    step = jit_train_step(SMALL, vocabulary, optimizer, abstract, mesh)
  tokens = np.random.default_rng(0).integers(0, SMALL.vocab_size, (BATCH, LENGTH + 1), np.int32)
  batch = {
      "inputs": tokens[:, :-1],
      "targets": tokens[:, 1:],
      "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
      "segment_ids": np.ones((BATCH, LENGTH), np.int32),
      "weights": np.ones((BATCH, LENGTH), np.float32),
  }

  def run():
    nonlocal state
    with jax.set_mesh(mesh):
      state, metrics = step(state, batch)
    return jax.block_until_ready(metrics)

  return run


def _torch_stepper() -> Callable[[], object]:
  """The same step with Hugging Face's Phi, eager, AdamW and clipping."""
  try:
    import torch
    import transformers
  except ImportError as error:
    raise UserError(
        f"--against=torch needs {error.name}; pip install torch==2.13.0 transformers==5.23."
    ) from error
  torch.manual_seed(0)
  model = transformers.PhiForCausalLM(
      transformers.PhiConfig(
          vocab_size=SMALL.vocab_size,
          hidden_size=SMALL.width,
          intermediate_size=SMALL.mlp_dim,
          num_hidden_layers=SMALL.num_layers,
          num_attention_heads=SMALL.num_heads,
          partial_rotary_factor=0.4,
          resid_pdrop=0.0,
          attn_implementation="sdpa",
      )
  ).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
  tokens = torch.randint(0, SMALL.vocab_size, (BATCH, LENGTH + 1))

  def run():
    optimizer.zero_grad(set_to_none=True)
    logits = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  return run


def main(argv: list[str]) -> None:
  """Prints seconds a step and tokens a second: the median over the steps of each, taken in turn."""
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.bench train", description=__doc__)
  parser.add_argument("--steps", type=int, default=10, help="timed steps of each")
  parser.add_argument("--against", choices=["torch"], help="also time the model in PyTorch")
  args = parser.parse_args(argv)
  steppers = {"chexmix_jax": _jax_stepper()}
  if args.against:
    steppers[args.against] = _torch_stepper()
  seconds: dict[str, list[float]] = {name: [] for name in steppers}
  for run in steppers.values():
    run()  # Compiles, and fills caches.
  for _ in range(args.steps):
    for name, run in steppers.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  print(
      f"{SMALL.num_layers} layers, width {SMALL.width}, {SMALL.num_heads} heads, batch {BATCH},"
      f" sequence {LENGTH}, vocabulary {SMALL.vocab_size}, float32, {jax.default_backend()}"
  )
  for name, values in seconds.items():
    median = statistics.median(values)
    print(f"{name:12} {median:8.3f} s a step {BATCH * LENGTH / median:10,.0f} tokens/s")
  if args.against:
    ratio = [b / a for a, b in zip(seconds["chexmix_jax"], seconds[args.against], strict=True)]
    print(f"speed of chexmix_jax / {args.against}: {statistics.median(ratio):.2f}")
