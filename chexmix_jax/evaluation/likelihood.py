"""How likely reports are given pictures: every report after every picture, or each after its own.

Shape suffixes as in models/transformer.py; I pictures, P tokens of their prompts, C passes of R
reports.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chexmix_jax.inference.embeddings import image_prompts, pad_texts
from chexmix_jax.models.transformer import Params, Transformer, TransformerConfig
from chexmix_jax.parallel.batches import map_rows
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.loss import weighted_nll


def log_likelihoods(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    image_ids: np.ndarray,
    texts: Sequence[np.ndarray],
    images_a_pass: int,
    reports_a_pass: int,
    description: str = "",
) -> np.ndarray:
  """log P(text, end of report | image) in nats, float32 (N pictures, R reports).

  `image_ids` are token ids (N, n), `texts` R arrays of text ids. The prompt `boi · image · eoi` of
  a picture is run once, and all reports go on from its keys and values. `reports_a_pass` reports of
  about one length share a forward pass.
  """
  order = np.argsort([len(text) for text in texts], kind="stable")
  rows_by_width: dict[int, list[np.ndarray]] = {}
  passes_by_width: dict[int, list[dict[str, np.ndarray]]] = {}
  for start in range(0, len(order), reports_a_pass):
    rows = order[np.minimum(np.arange(start, start + reports_a_pass), len(order) - 1)]
    report_pass = _teacher_forced(vocabulary, [texts[i] for i in rows])
    width = report_pass["tokens"].shape[1]
    rows_by_width.setdefault(width, []).append(rows)
    passes_by_width.setdefault(width, []).append(report_pass)
  groups = [
      jax.tree.map(lambda *arrays: np.stack(arrays), *passes) for passes in passes_by_width.values()
  ]
  function = jax.tree_util.Partial(_score_reports(config), params, groups)
  scores = map_rows(function, image_prompts(vocabulary, image_ids), images_a_pass, description)
  result = np.empty((len(image_ids), len(texts)), np.float32)
  for columns, scores_ICR in zip(rows_by_width.values(), scores, strict=True):
    result[:, np.concatenate(columns)] = scores_ICR.reshape(len(result), -1)
  return result


def own_log_likelihoods(
    config: TransformerConfig,
    vocabulary: Vocabulary,
    params: Params,
    prompts: Sequence[np.ndarray],
    texts: Sequence[np.ndarray],
    batch_size: int,
    description: str = "",
) -> np.ndarray:
  """log P(text, its end | prompt) in nats, float32 (N), of N prompts and their own texts.

  Both are N arrays of token ids; a prompt holds all that stands before its text.
  """
  end = np.array([vocabulary.boi], np.int32)
  tokens_NT, is_token_NT = pad_texts(
      vocabulary,
      [np.concatenate([*parts, end]) for parts in zip(prompts, texts, strict=True)],
  )
  starts_N1 = np.array([len(prompt) for prompt in prompts])[:, None]
  is_text_NT = is_token_NT & (np.arange(tokens_NT.shape[1]) >= starts_N1)
  rows = {
      "tokens": tokens_NT[:, :-1], "targets": tokens_NT[:, 1:],
      "weights": is_text_NT[:, 1:].astype(np.float32),
  }  # fmt: skip
  function = jax.tree_util.Partial(_score_own(config), params)
  return map_rows(function, rows, batch_size, description)


def _teacher_forced(vocabulary: Vocabulary, texts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
  """`eot · text` as inputs, `text · boi` as targets, both int32 (R, T), float32 weights (R, T)."""
  targets, counted = pad_texts(
      vocabulary, [np.append(text, np.int32(vocabulary.boi)) for text in texts]
  )
  tokens = np.pad(targets, ((0, 0), (1, 0)), constant_values=vocabulary.eot)[:, :-1]
  return {"tokens": tokens, "targets": targets, "weights": counted.astype(np.float32)}


@functools.cache
def _score_reports(config: TransformerConfig) -> Callable:
  def function(params, groups, prompts_IP) -> list[jax.Array]:
    model = Transformer(config, params)
    images, prompt_length = prompts_IP.shape
    slots_IP = jnp.broadcast_to(jnp.arange(prompt_length), prompts_IP.shape)
    _, prefix = model.decode(prompts_IP, slots_IP, model.init_cache(images, prompt_length))

    def score(reports):
      count, width = reports["tokens"].shape
      cache = model.widen_cache(prefix, count, width)
      tokens_BT, targets_BT, weights_BT = (
          jnp.tile(reports[name], (images, 1)) for name in ("tokens", "targets", "weights")
      )
      positions_BT = jnp.broadcast_to(prompt_length + jnp.arange(width), tokens_BT.shape)
      logits_BTV, _ = model.decode(tokens_BT, positions_BT, cache)
      nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
      return -jnp.sum(nll_BT * weights_BT, axis=-1).reshape(images, count)

    return [jax.lax.map(score, group).swapaxes(0, 1) for group in groups]

  return function


@functools.cache
def _score_own(config: TransformerConfig) -> Callable:
  def function(params, rows) -> jax.Array:
    model = Transformer(config, params)
    hidden_BTD = model.last_hidden(rows["tokens"])
    kernel, bias = model.head["kernel"], model.head["bias"]
    _, nll_BT = weighted_nll(hidden_BTD, kernel, bias, rows["targets"], rows["weights"])
    return -jnp.sum(nll_BT * rows["weights"], axis=-1)

  return function
