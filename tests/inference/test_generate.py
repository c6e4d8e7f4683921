"""Generation with a cache: against a loop without one, and against the PyTorch implementation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.conversion.phi import params_from_torch
from chexmix_jax.errors import UserError
from chexmix_jax.inference.generate import GenerateConfig, generate
from chexmix_jax.models.transformer import Transformer, TransformerConfig, init_params
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import param_shardings
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
  return np.asarray(tokens), np.array([12, 12, 7, 1])


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


def test_image_only_and_forbidden_ranges_leave_the_rest(params, prompts):
  offset = VOCABULARY.image_offset
  options = GenerateConfig(
      max_new=12, stop_ids=(BOI,), text_only=False, image_only=True,
      forbidden=((offset, offset + 5), (offset + 7, offset + 30)),
  )  # fmt: skip
  new = generate(SMALL, params, VOCABULARY, *prompts, options)
  assert set(new.ravel().tolist()) <= {offset + 5, offset + 6, BOI, VOCABULARY.pad}
  # A range may hold stop ids too: then rows never end.
  without = dataclasses.replace(options, forbidden=(*options.forbidden, (BOI, BOI + 1)))
  new = generate(SMALL, params, VOCABULARY, *prompts, without)
  assert set(new.ravel().tolist()) <= {offset + 5, offset + 6}


@pytest.mark.parametrize("min_new, forbidden", [(0, (0, 64)), (1, (0, 30))])
def test_options_that_leave_nothing_are_refused(params, prompts, min_new, forbidden):
  options = GenerateConfig(max_new=4, stop_ids=(BOI,), min_new=min_new, forbidden=(forbidden,))
  with pytest.raises(UserError, match="leave no id to write"):
    generate(SMALL, params, VOCABULARY, *prompts, options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_only": True}, {"temperature": -1.0}, {"temperature": 1.0, "top_k": -1},
        {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "top_p": 1.1}, {"top_k": 3},
        {"top_p": 0.5},
    ],
)  # fmt: skip
def test_settings_of_the_draw_that_make_no_sense_are_refused(wrong):
  with pytest.raises(UserError, match=" of a generation "):
    GenerateConfig(max_new=4, stop_ids=(BOI,), **wrong)


def test_a_draw_from_the_best_one_is_greedy(params, prompts):
  greedy = GenerateConfig(max_new=16, stop_ids=(BOI,))
  expected = generate(SMALL, params, VOCABULARY, *prompts, greedy)
  for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
    options = dataclasses.replace(greedy, temperature=2.0, seed=3, **narrow)
    new = generate(SMALL, params, VOCABULARY, *prompts, options)
    np.testing.assert_array_equal(new, expected)


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.6), (2.0, 5, 0.7)],
)
def test_draws_have_the_frequencies_of_the_distribution(params, temperature, top_k, top_p):
  # Without a kernel the bias alone decides: every token has the same, known distribution.
  logits = np.random.default_rng(0).normal(0, 1.5, VOCABULARY.size).astype(np.float32)
  flat = {**params, "lm_head": {"kernel": jnp.zeros_like(params["lm_head"]["kernel"]),
                                "bias": logits}}  # fmt: skip
  options = GenerateConfig(
      max_new=500, stop_ids=(), text_only=False, forbidden=((3, 40),), temperature=temperature,
      top_k=top_k, top_p=top_p, seed=1,
  )  # fmt: skip
  new = generate(SMALL, flat, VOCABULARY, np.zeros((8, 4)), np.full(8, 4), options)

  expected = np.exp(logits.astype(np.float64) / temperature)
  expected[3:40] = 0
  order = np.argsort(-expected)
  if top_k:
    expected[order[top_k:]] = 0
  expected /= expected.sum()
  # The smallest set: without its last id it would be too little.
  size = int(np.searchsorted(np.cumsum(expected[order]), top_p)) + 1
  expected[order[size:]] = 0
  expected /= expected.sum()
  assert 1 < np.count_nonzero(expected) == min(size, np.count_nonzero(expected))
  seen = np.bincount(new.ravel(), minlength=VOCABULARY.size) / new.size
  assert np.all(seen[expected == 0] == 0)
  np.testing.assert_array_less(
      np.abs(seen - expected), 5 * np.sqrt(expected * (1 - expected) / new.size) + 1e-9
  )


def test_a_draw_depends_on_the_seed_and_the_rows_number_alone(params, prompts):
  tokens, lengths = prompts
  options = GenerateConfig(max_new=16, stop_ids=(BOI,), temperature=1.0, seed=5)
  new = generate(SMALL, params, VOCABULARY, tokens, lengths, options)
  np.testing.assert_array_equal(
      generate(SMALL, params, VOCABULARY, tokens, lengths, options), new
  )
  for row in range(4):
    alone = slice(row, row + 1)
    np.testing.assert_array_equal(
        generate(SMALL, params, VOCABULARY, tokens[alone], lengths[alone], options, row), new[alone]
    )
  other = dataclasses.replace(options, seed=6)
  assert np.any(generate(SMALL, params, VOCABULARY, tokens, lengths, other) != new)
  # Alike prompts are drawn for apart.
  alike = generate(SMALL, params, VOCABULARY, tokens[[0, 0]], lengths[[0, 0]], options)
  assert np.any(alike[0] != alike[1])


def test_no_other_length_or_setting_compiles_anew(params):
  compiled = []

  def listen(event, _, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(event)

  def run(rows, width, **settings):
    options = GenerateConfig(stop_ids=(BOI,), **settings)
    lengths = np.arange(rows) % width + 1
    lengths[-1] = width
    new = generate(SMALL, params, VOCABULARY, np.ones((rows, width)), lengths, options)
    assert new.shape == (rows, options.max_new)

  run(9, 33, max_new=33)
  run(9, 33, max_new=33, temperature=1.0)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    run(10, 48, max_new=48, min_new=3)
    run(9, 40, max_new=41, text_only=False, forbidden=((3, 5),))
    run(9, 40, max_new=40, temperature=0.7, top_k=3, top_p=0.9, seed=4)
    assert not compiled
    run(9, 49, max_new=33)
    assert compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_write_what_one_writes(params, prompts, sizes):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  mesh = make_mesh(MeshConfig(*sizes))
  sharded = jax.device_put(params, param_shardings(mesh, params))
  for settings in ({}, {"temperature": 1.0, "seed": 2}):
    options = GenerateConfig(max_new=16, stop_ids=(BOI,), **settings)
    expected = generate(SMALL, params, VOCABULARY, *prompts, options)
    with jax.set_mesh(mesh):
      np.testing.assert_array_equal(
          generate(SMALL, sharded, VOCABULARY, *prompts, options), expected
      )


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
  # Cases of one program: they differ in the length of the prompt and in the output bias.
  compared = 0
  for name in golden["names"].tolist():
    prompt, max_new = golden[f"{name}/prompt"], int(golden[f"{name}/max_new"])
    bias = np.array(params["lm_head"]["bias"])
    bias[golden[f"{name}/bias_ids"]] += golden[f"{name}/bias_add"]
    changed = {**params, "lm_head": {**params["lm_head"], "bias": bias}}
    options = GenerateConfig(
        max_new=max_new, min_new=int(golden[f"{name}/min_new"]), stop_ids=(vocabulary.eot,),
        text_only=False,
    )  # fmt: skip
    new = generate(config, changed, vocabulary, prompt[None], [len(prompt)], options)[0]
    expected, margin = golden[f"{name}/new"], golden[f"{name}/margin"]
    # Behind a close call another token may stand, and then all that follows may differ.
    close = np.flatnonzero(margin <= MARGIN)
    sure = close[0] if len(close) else len(expected)
    np.testing.assert_array_equal(new[:sure], expected[:sure], err_msg=name)
    if sure == len(expected):
      assert np.all(new[sure:] == vocabulary.pad), name
    compared += sure
  assert compared > 0.9 * sum(len(golden[f"{name}/new"]) for name in golden["names"])
