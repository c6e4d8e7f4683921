"""Generation with a cache of keys and values: greedy, or by drawing.

Shape suffixes as in models/transformer.py; P tokens of a prompt, N new tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.models.cache import Cache
from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.parallel.devices import MEMORY_FIRST, return_freed_memory
from chexmix_jax.parallel.sharding import constrain
from chexmix_jax.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
  """When a row ends, what it may hold, and how an id is chosen.

  Attributes:
    max_new: new tokens at most.
    stop_ids: each of them ends a row. A report ends with the vocabulary's boi or its report_end.
    min_new: the first `min_new` tokens are no stop ids.
    text_only: nothing but text and stop ids is written; the published model is not held to it.
    image_only: nothing but image and stop ids is written.
    forbidden: ranges [first, end) of ids that are never written, stop ids among them or not.
    temperature: ids are drawn by the softmax of logits / temperature; 0 takes the most likely.
    top_k: draw from the `top_k` most likely ids; 0 from all.
    top_p: of those, draw from the smallest set of the most likely whose probabilities add up to
      `top_p` or more.
    seed: of the draws.
  """

  max_new: int
  stop_ids: tuple[int, ...]
  min_new: int = 0
  text_only: bool = True
  image_only: bool = False
  forbidden: tuple[tuple[int, int], ...] = ()
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self):
    if not 0 <= self.min_new <= self.max_new or self.max_new < 1:
      raise UserError(
          f"min_new={self.min_new} and max_new={self.max_new} of a generation must be 0 or more and"
          " 1 or more, in this order."
      )
    if self.text_only and self.image_only:
      raise UserError("text_only and image_only of a generation exclude each other; drop one.")
    if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
      raise UserError(
          f"temperature={self.temperature} and top_k={self.top_k} of a generation must be 0 or"
          f" more, and top_p={self.top_p} above 0 and at most 1."
      )
    if self.temperature == 0 and (self.top_k, self.top_p) != (0, 1.0):
      raise UserError(
          f"top_k={self.top_k} and top_p={self.top_p} of a generation need a temperature above 0."
      )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rules:
  """A GenerateConfig as arrays, so that other settings need no other program."""

  allowed_V: np.ndarray
  is_stop_V: np.ndarray
  pad: np.int32
  min_new: np.int32
  max_new: np.int32
  temperature: np.float32
  top_k: np.int32
  top_p: np.float32
  seed: np.uint32


def generate(
    config: TransformerConfig,
    params: Params,
    vocabulary: Vocabulary,
    prompts_BP: jax.typing.ArrayLike,
    lengths_B: jax.typing.ArrayLike,
    options: GenerateConfig,
    first_row: int = 0,
) -> np.ndarray:
  """New ids after each prompt: int32 (B, max_new), stop id included, then pad.

  `prompts_BP` are token ids, of which the first `lengths_B` (1 or more) of each row count. All rows
  go on until all have ended. Rows are divided over the mesh in force. Batch, prompts and new tokens
  are padded to few sizes, and a program is compiled for those sizes alone.

  What is drawn for a row depends on the seed and on its number, `first_row` for the first one, and
  on nothing else in the batch.

  Raises UserError where the options leave no id to write.
  """
  lengths_B = np.asarray(lengths_B, np.int32)
  rows, width = len(lengths_B), int(lengths_B.max())
  devices = max(jax.sharding.get_abstract_mesh().size, 1)
  more_rows = -(-_bucket(rows, 4) // devices) * devices - rows
  room = _bucket(width, 32, 16)
  prompts_BP = np.pad(
      np.asarray(prompts_BP, np.int32)[:, :width],
      ((0, more_rows), (0, room - width)),
      constant_values=vocabulary.pad,
  )
  lengths_B = np.pad(lengths_B, (0, more_rows), constant_values=1)
  max_new = _bucket(options.max_new, 32, 16)
  rules = _rules(vocabulary, options)
  cache = _prefill(config, params, prompts_BP, room + max_new)
  new_BN = np.asarray(_extend(
      config, params, cache, prompts_BP, lengths_B, np.int32(rows), np.uint32(first_row), rules,
      max_new, options.temperature > 0,
  )[0])  # fmt: skip
  del cache
  return_freed_memory()  # The next cache may not find room where this one was.
  return new_BN[:rows, : options.max_new]


def _bucket(size: int, parts: int, step: int = 1) -> int:
  """`size`, rounded up to one of few sizes: multiples of `step`, `parts` at most in an octave."""
  octave = 1 << max(size - 1, 1).bit_length() - 1
  step = max(step, octave // parts)
  return -(-size // step) * step


def _rules(vocabulary: Vocabulary, options: GenerateConfig) -> _Rules:
  ids_V = np.arange(vocabulary.size)
  is_stop_V = np.isin(ids_V, options.stop_ids)
  allowed_V = np.ones_like(is_stop_V)
  if options.text_only:
    allowed_V = vocabulary.is_text(ids_V) | is_stop_V
  if options.image_only:
    allowed_V = vocabulary.is_image(ids_V) | is_stop_V
  for first, end in options.forbidden:
    allowed_V &= (ids_V < first) | (ids_V >= end)
  if not np.any(allowed_V & ~is_stop_V if options.min_new else allowed_V):
    raise UserError("The options of a generation leave no id to write; forbid fewer.")
  return _Rules(
      allowed_V=allowed_V,
      is_stop_V=is_stop_V,
      pad=np.int32(vocabulary.pad),
      min_new=np.int32(options.min_new),
      max_new=np.int32(options.max_new),
      temperature=np.float32(options.temperature),
      top_k=np.int32(options.top_k or vocabulary.size),
      top_p=np.float32(options.top_p),
      seed=np.uint32(options.seed),
  )


@functools.partial(
    jax.jit, static_argnames=("config", "room"), compiler_options=MEMORY_FIRST
)
def _prefill(
    config: TransformerConfig, params: Params, prompts_BP: jax.Array, room: int
) -> Cache:
  # The logits are not asked for, so neither they nor most of the last layer are computed: the first
  # step of _extend runs the last token of each prompt once more, which costs less.
  return Transformer(config, params).prefill(constrain(prompts_BP, ("batch", None)), room)[1]


@functools.partial(
    jax.jit, static_argnames=("config", "room", "is_drawn"), donate_argnames="cache",
    compiler_options=MEMORY_FIRST,
)
def _extend(
    config: TransformerConfig,
    params: Params,
    cache: Cache,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    count: jax.Array,
    first_row: jax.Array,
    rules: _Rules,
    room: int,
    is_drawn: bool,
) -> tuple[jax.Array, Cache]:
  """New ids (B, room) of the first `count` rows, by the cache of their prompts.

  Also what has become of the cache: only what comes out can take the memory of what goes in.
  """
  model = Transformer(config, params)
  rows, width = prompts_BP.shape
  rows_B, slots_S = jnp.arange(rows), jnp.arange(width + room)
  # The last token of each prompt goes to the first slot behind all prompts, new ones follow it.
  is_prompt_BS = slots_S < lengths_B[:, None] - 1
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(rules.seed), first_row + rows_B)

  def go_on(state):
    step, _, has_ended_B, _, _ = state
    return (step < rules.max_new) & ~jnp.all(has_ended_B)

  def extend(state):
    step, last_B, has_ended_B, new_BN, cache = state
    mask_BS = is_prompt_BS | ((slots_S >= width) & (slots_S <= width + step))
    logits_B1V, cache = model.decode(
        last_B[:, None], (lengths_B - 1 + step)[:, None], cache, width + step, mask_BS[:, None]
    )
    allowed_V = rules.allowed_V & ~(rules.is_stop_V & (step < rules.min_new))
    logits_BV = jnp.where(allowed_V, logits_B1V[:, 0], -jnp.inf)
    if is_drawn:
      chosen_B = jax.vmap(_draw, (None, 0, 0, None))(rules, logits_BV, keys_B, step)
    else:
      chosen_B = jnp.argmax(logits_BV, axis=-1)
    next_B = jnp.where(has_ended_B, rules.pad, chosen_B).astype(jnp.int32)
    new_BN = jax.lax.dynamic_update_slice(new_BN, next_B[:, None], (0, step))
    return step + 1, next_B, has_ended_B | jnp.asarray(rules.is_stop_V)[next_B], new_BN, cache

  last_B = jnp.take_along_axis(prompts_BP, lengths_B[:, None] - 1, axis=1)[:, 0]
  new_BN = jnp.full((rows, room), rules.pad, jnp.int32)
  return jax.lax.while_loop(go_on, extend, (0, last_B, rows_B >= count, new_BN, cache))[3:]


def _draw(rules: _Rules, logits_V: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
  """An id of a row by its logits, of which some may be -inf."""
  ids_V = jnp.argsort(logits_V, descending=True)
  logits_V = jnp.where(
      jnp.arange(len(ids_V)) < rules.top_k, logits_V[ids_V] / rules.temperature, -jnp.inf
  )
  probs_V = jax.nn.softmax(logits_V)
  is_kept_V = jnp.cumsum(probs_V) - probs_V < rules.top_p
  rank = jax.random.categorical(
      jax.random.fold_in(key, step), jnp.where(is_kept_V, logits_V, -jnp.inf)
  )
  return ids_V[rank]
