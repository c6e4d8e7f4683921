"""Greedy generation with a cache of keys and values.

Shape suffixes as in models/transformer.py; P tokens of a prompt, N new tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.tokenizers.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
  """When a row ends and what it may hold.

  Attributes:
    max_new: new tokens at most.
    stop_ids: each of them ends a row. A report of our own models ends with the vocabulary's boi,
      one of the published model with its eot.
    min_new: the first `min_new` tokens are no stop ids.
    text_only: nothing but text and stop ids is written; the published model is not held to it.
  """

  max_new: int
  stop_ids: tuple[int, ...]
  min_new: int = 0
  text_only: bool = True

  def __post_init__(self):
    if not 0 <= self.min_new <= self.max_new or self.max_new < 1:
      raise UserError(
          f"min_new={self.min_new} and max_new={self.max_new} of a generation must be 0 or more and"
          " 1 or more, in this order."
      )


@functools.partial(jax.jit, static_argnames=("config", "vocabulary", "options"))
def generate(
    config: TransformerConfig,
    params: Params,
    vocabulary: Vocabulary,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    options: GenerateConfig,
) -> jax.Array:
  """The most likely token, again and again: int32 (B, max_new), stop id included, then pad.

  `prompts_BP` are token ids, of which the first `lengths_B` (1 or more) of each row count. The loop
  ends when all rows have.
  """
  model = Transformer(config, params)
  rows, room = prompts_BP.shape
  slots_BP = jnp.broadcast_to(jnp.arange(room), prompts_BP.shape)
  # The logits are not asked for, so they are never computed: the first step below runs the last
  # token of each prompt once more, which costs less than the logits of all of them.
  _, cache = model.decode(prompts_BP, slots_BP, model.init_cache(rows, room + options.max_new))
  ids = np.arange(vocabulary.size)
  is_stop_V = np.isin(ids, options.stop_ids)
  allowed_V = vocabulary.is_text(ids) | is_stop_V if options.text_only else np.ones_like(is_stop_V)

  def go_on(state):
    step, _, has_ended_B, _, _ = state
    return (step < options.max_new) & ~jnp.all(has_ended_B)

  def extend(state):
    step, last_B, has_ended_B, new_BN, cache = state
    positions_B1 = (lengths_B - 1 + step)[:, None]
    logits_B1V, cache = model.decode(last_B[:, None], positions_B1, cache)
    allowed = allowed_V & ~(is_stop_V & (step < options.min_new))
    best_B = jnp.argmax(jnp.where(allowed, logits_B1V[:, 0], -jnp.inf), axis=-1)
    next_B = jnp.where(has_ended_B, vocabulary.pad, best_B).astype(jnp.int32)
    new_BN = jax.lax.dynamic_update_slice(new_BN, next_B[:, None], (0, step))
    return step + 1, next_B, has_ended_B | jnp.asarray(is_stop_V)[next_B], new_BN, cache

  last_B = jnp.take_along_axis(prompts_BP, lengths_B[:, None] - 1, axis=1)[:, 0]
  new_BN = jnp.full((rows, options.max_new), vocabulary.pad, jnp.int32)
  start = (0, last_B.astype(jnp.int32), jnp.zeros(rows, bool), new_BN, cache)
  return jax.lax.while_loop(go_on, extend, start)[3]
