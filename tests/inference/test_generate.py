"""Generation with a cache: against a loop without one, and against the PyTorch implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.conversion.phi import params_from_torch
from chexmix_jax.errors import UserError
from chexmix_jax.inference.generate import GenerateConfig, generate
from chexmix_jax.models.transformer import Transformer, TransformerConfig, init_params
from chexmix_jax.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary.sentencepiece(num_text=30, num_codes=20)
SMALL = TransformerConfig(
    vocab_size=VOCABULARY.size, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4,
    dropout=0.0,
)  # fmt: skip
BOI = VOCABULARY.boi
MARGIN = 1e-4  # Golden ids may differ where the two best logits are closer than this.


@pytest.fixture(scope="module")
def params():
  """Random, with the stop id made likely, so that rows end at different steps."""
  params = jax.jit(functools.partial(init_params, SMALL))(jax.random.key(0))
  params["lm_head"]["bias"] = params["lm_head"]["bias"].at[BOI].add(0.9)
  return params


@pytest.fixture(scope="module")
def prompts():
  """Four rows with 12, 12, 7 and 1 tokens."""
  tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, VOCABULARY.size)
  return tokens, jnp.array([12, 12, 7, 1])


@jax.jit
def forward(params, tokens):
  return Transformer(SMALL, params)(tokens)


def naive(params, prompt, options):
  """One row, the whole sequence again at every step."""
  ids = np.arange(VOCABULARY.size)
  sequence, new = list(prompt), []
  while len(new) < options.max_new and not (new and new[-1] in options.stop_ids):
    # Right padding is never looked at; with it there is one shape to compile.
    padded = sequence + [0] * (12 + options.max_new - len(sequence))
    logits = np.array(forward(params, jnp.array([padded]))[0, len(sequence) - 1])
    if options.text_only:
      logits[~(VOCABULARY.is_text(ids) | np.isin(ids, options.stop_ids))] = -np.inf
    if len(new) < options.min_new:
      logits[list(options.stop_ids)] = -np.inf
    new.append(int(logits.argmax()))
    sequence.append(new[-1])
  return new + [VOCABULARY.pad] * (options.max_new - len(new))


@pytest.mark.parametrize(
    "options",
    [
        GenerateConfig(max_new=16, stop_ids=(BOI,)),
        GenerateConfig(max_new=16, stop_ids=(BOI,), min_new=5),
        GenerateConfig(max_new=16, stop_ids=(BOI, VOCABULARY.eot), text_only=False),
    ],
)
def test_it_writes_what_a_loop_without_cache_writes(params, prompts, options):
  tokens, lengths = prompts
  new = generate(SMALL, params, VOCABULARY, tokens, lengths, options)
  assert new.shape == (4, 16) and new.dtype == jnp.int32
  expected = [
      naive(params, row[:length].tolist(), options)
      for row, length in zip(tokens, lengths, strict=True)
  ]
  np.testing.assert_array_equal(new, expected)
  # Otherwise the comparison says little: some row ends early, and rows differ.
  assert np.isin(new, options.stop_ids).any() and len({*map(tuple, expected)}) > 1


def test_padding_behind_a_prompt_changes_nothing(params, prompts):
  tokens, lengths = prompts
  options = GenerateConfig(max_new=8, stop_ids=(BOI,))
  other = jnp.where(jnp.arange(12) < lengths[:, None], tokens, VOCABULARY.pad)
  np.testing.assert_array_equal(
      generate(SMALL, params, VOCABULARY, tokens, lengths, options),
      generate(SMALL, params, VOCABULARY, other, lengths, options),
  )


def test_nothing_but_text_and_a_stop_id_is_written_when_asked_for(params, prompts):
  loud = {**params, "lm_head": {**params["lm_head"]}}
  loud["lm_head"]["bias"] = loud["lm_head"]["bias"].at[VOCABULARY.image_offset].add(100.0)
  tokens, lengths = prompts
  both = {
      text_only: np.asarray(
          generate(
              SMALL, loud, VOCABULARY, tokens, lengths,
              GenerateConfig(max_new=6, stop_ids=(BOI,), text_only=text_only),
          )
      )
      for text_only in (True, False)
  }  # fmt: skip
  assert np.all(both[False] == VOCABULARY.image_offset)
  allowed = VOCABULARY.is_text(both[True]) | np.isin(both[True], [BOI, VOCABULARY.pad])
  assert np.all(allowed)


def test_a_row_may_end_with_its_first_token(params, prompts):
  silent = {**params, "lm_head": {**params["lm_head"]}}
  silent["lm_head"]["bias"] = silent["lm_head"]["bias"].at[BOI].add(100.0)
  new = generate(
      SMALL, silent, VOCABULARY, *prompts, GenerateConfig(max_new=8, stop_ids=(BOI,))
  )
  np.testing.assert_array_equal(new, np.tile([BOI] + 7 * [VOCABULARY.pad], (4, 1)))


@pytest.mark.parametrize("max_new, min_new", [(0, 0), (4, 5), (4, -1)])
def test_lengths_that_make_no_sense_are_refused(max_new, min_new):
  with pytest.raises(UserError, match="min_new="):
    GenerateConfig(max_new=max_new, min_new=min_new, stop_ids=(BOI,))


def test_greedy_ids_equal_the_pytorch_implementation(shared):
  safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
  config = TransformerConfig(
      vocab_size=814, num_layers=4, width=64, num_heads=4, mlp_dim=256, rotary_dim=6
  )
  vocabulary = Vocabulary(
      size=814, num_text=300, image_offset=300, num_codes=512, boi=295, eoi=296, eot=256, mask=812,
      pad=813,
  )  # fmt: skip
  tensors = safetensors.load_file(shared / "parity/phi_small/model.safetensors")
  params = jax.tree.map(jnp.asarray, params_from_torch(config, tensors))
  golden = np.load(shared / "parity/gen_small.npz")
  # Cases of one prompt length run together, each with an output bias of its own.
  groups = {}
  for name in golden["names"].tolist():
    key = len(golden[f"{name}/prompt"]), int(golden[f"{name}/min_new"])
    groups.setdefault(key, []).append(name)
  compared = 0
  for (length, min_new), names in groups.items():
    options = GenerateConfig(
        max_new=max(int(golden[f"{name}/max_new"]) for name in names), min_new=min_new,
        stop_ids=(vocabulary.eot,), text_only=False,
    )  # fmt: skip

    def run(bias, prompt, length=length, options=options):
      changed = {**params, "lm_head": {**params["lm_head"], "bias": bias}}
      return generate(
          config, changed, vocabulary, prompt[None], jnp.array([length]), options
      )[0]

    biases = np.repeat(np.asarray(params["lm_head"]["bias"])[None], len(names), axis=0)
    for bias, name in zip(biases, names, strict=True):
      bias[golden[f"{name}/bias_ids"]] += golden[f"{name}/bias_add"]
    prompts = np.stack([golden[f"{name}/prompt"] for name in names]).astype(np.int32)
    for name, new in zip(names, np.asarray(jax.jit(jax.vmap(run))(biases, prompts)), strict=True):
      expected, margin = golden[f"{name}/new"], golden[f"{name}/margin"]
      # Behind a close call another token may stand, and then all that follows may differ.
      close = np.flatnonzero(margin <= MARGIN)
      sure = close[0] if len(close) else len(expected)
      np.testing.assert_array_equal(new[:sure], expected[:sure], err_msg=name)
      if sure == len(expected) < golden[f"{name}/max_new"]:
        assert np.all(new[sure:] == vocabulary.pad), name
      compared += sure
  assert compared > 0.9 * sum(len(golden[f"{name}/new"]) for name in golden["names"])
