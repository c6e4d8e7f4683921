"""The run that another one adapts: which it is, that it is the same, and what comes of both."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from chexmix_jax import config as config_lib
from chexmix_jax.errors import UserError
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.models.transformer import Params, TransformerConfig, abstract_params
from chexmix_jax.parallel.sharding import param_shardings, parameter_name, sharded_shapes
from chexmix_jax.tokenizers.text import base_fingerprint
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.checkpoint import (
  load_params,
  ranked_steps,
  read_job,
  saved_steps,
)
from chexmix_jax.training.trainable import abstract_trained, merged_params, prepare_params


def describe_base(run_dir: pathlib.Path) -> dict[str, Any]:
  """What job.json says of the base: step of its checkpoint, sha256 of its own job.json.

  The checkpoint is its best, of a run with validations, and else its newest.
  """
  read_job(run_dir)
  steps = ranked_steps(run_dir)
  if not steps:
    raise UserError(f"{run_dir} has no checkpoint; name another run.")
  digest = hashlib.sha256((run_dir / "job.json").read_bytes()).hexdigest()
  return {"step": steps[-1], "job_sha256": digest}


def base_card(
    run_dir: pathlib.Path, tokens: dict[str, Any], adapter: AdapterConfig | None
) -> dict[str, Any]:
  """The card of the base's tokens, as it is once the base has rows for what `tokens` add to it.

  They are the text tokens that were added to its tokenizer, where that is all that differs. Raises
  UserError where an adapter leaves their rows as they are.
  """
  card = read_job(run_dir)["tokens"]
  wanted, vocabulary = (Vocabulary(**job["vocabulary"]) for job in (tokens, card))
  is_base = card["text_tokenizer"] == base_fingerprint(tokens["text_tokenizer"])
  if not wanted.extra_text or vocabulary.extra_text or not is_base:
    return card
  first, last = wanted.extra_offset, wanted.extra_offset + wanted.extra_text
  if adapter is not None and not adapter.trains("embed.embedding"):
    rows = adapter.rows or (0, 0)
    if rows[0] > first or rows[1] < last:
      raise UserError(
          f"The tokens hold {wanted.extra_text} text tokens that init={run_dir} does not know; set"
          f" model.adapter.rows=({first}, {last}) to train their rows."
      )
  extended = vocabulary.extended(wanted.extra_text).to_dict()
  return {**card, "vocabulary": extended, "text_tokenizer": tokens["text_tokenizer"]}


def load_base(
    run_dir: pathlib.Path,
    config: TransformerConfig,
    mesh: jax.sharding.Mesh,
    expected: dict[str, Any] | None = None,
) -> Params:
  """Parameters of the base on the mesh, in the precision in which a run with `config` holds them.

  They are those that `load_params` chooses, or that `expected` names, see describe_base. A base of
  fewer ids gets rows for the others. Raises UserError where the folder does not hold these.
  """
  step = None
  if expected is not None:
    step = expected["step"]
    digest = describe_base(run_dir)["job_sha256"]
    if digest != expected["job_sha256"] or step not in saved_steps(run_dir):
      raise UserError(
          f"{run_dir} is not the base that was adapted, or lacks its checkpoint of step {step}; put"
          " that back."
      )
  adapter, theirs = config.adapter, read_model(run_dir)
  # Another classifier than ours is left out, ours comes fresh then.
  plain = abstract_params(
      dataclasses.replace(
          config, adapter=None, classifier=theirs.classifier, vocab_size=theirs.vocab_size
      )
  )
  shardings = param_shardings(mesh, plain)

  def held(path: Any, leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    is_trained = adapter is None or adapter.trains(parameter_name(path))
    dtype = leaf.dtype if is_trained else jnp.dtype(config.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

  abstract = jax.tree_util.tree_map_with_path(held, plain, shardings)
  if theirs.adapter is None:
    params, _ = load_params(run_dir, abstract, step)
  else:
    if jax.tree.map(lambda x: x.shape, plain) != jax.tree.map(
        lambda x: x.shape, abstract_params(dataclasses.replace(theirs, adapter=None))
    ):
      raise UserError(f"{run_dir} has a model of another shape; use the config of its base.")
    params, _ = load_adapted(run_dir, theirs, step, mesh)
    params = jax.tree.map(lambda leaf, as_held: leaf.astype(as_held.dtype), params, abstract)
  params = _widened(params, run_dir, config, mesh)
  return _with_classifier_of(config, theirs, params)


def _with_classifier_of(
    config: TransformerConfig, theirs: TransformerConfig, params: Params
) -> Params:
  """The parameters without a classifier that `config` has not."""
  if theirs.classifier is None or theirs.classifier == config.classifier:
    return params
  return {name: value for name, value in params.items() if name != "classifier"}


def _widened(
    params: Params, run_dir: pathlib.Path, config: TransformerConfig, mesh: jax.sharding.Mesh
) -> Params:
  """The parameters with a row for every id of `config`: new ones are the mean of the text's.

  A new output is then no likelier than a text token is on average, so that the others lose little
  to it (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
  """
  missing = config.vocab_size - params["embed"]["embedding"].shape[0]
  if not missing:
    return params
  num_text = Vocabulary(**read_job(run_dir)["tokens"]["vocabulary"]).num_text

  def widen(leaf: jax.Array, axis: int) -> jax.Array:
    text = jax.lax.slice_in_dim(leaf, 0, num_text, axis=axis).astype(jnp.float32)
    mean = text.mean(axis, keepdims=True).astype(leaf.dtype)
    return jnp.concatenate([leaf, jnp.repeat(mean, missing, axis)], axis)

  def widen_all(params: Params) -> Params:
    head = params["lm_head"]
    return {
        "embed": {"embedding": widen(params["embed"]["embedding"], 0)},
        "lm_head": {"kernel": widen(head["kernel"], 1), "bias": widen(head["bias"], 0)},
    }

  ends = {name: params[name] for name in ("embed", "lm_head")}
  shardings = param_shardings(mesh, jax.eval_shape(widen_all, ends))
  return {**params, **jax.jit(widen_all, out_shardings=shardings)(ends)}


def read_model(run_dir: pathlib.Path) -> TransformerConfig:
  """The model's config of a run."""
  settings = read_job(run_dir)["train"]["model"]
  return config_lib.build(TransformerConfig, settings, f"{run_dir}/job.json: model")


def base_dir(run_dir: pathlib.Path) -> pathlib.Path:
  """The run that a run started from, as it was told.

  A relative path is looked for from here, then from the folders above the run, so that runs can be
  moved together and used from anywhere.
  """
  init = pathlib.Path(read_job(run_dir)["train"]["init"])
  places = [init, *(parent / init for parent in run_dir.resolve().parents)]
  return next((place for place in places if (place / "job.json").exists()), init)


def load_adapted(
    run_dir: pathlib.Path, config: TransformerConfig, step: int | None, mesh: jax.sharding.Mesh
) -> tuple[Params, int]:
  """Parameters of the plain model that a run with an adapter has made of its base, and their step.

  UserError where the base is gone or another, or the run has no such checkpoint.
  """
  base = load_base(base_dir(run_dir), config, mesh, read_job(run_dir)["base"])

  def prepare(base: Params) -> tuple[Params, Params]:
    return prepare_params(config, jax.random.key(0), base)

  trained, step = load_params(run_dir, sharded_shapes(mesh, abstract_trained(config)), step)

  def merge(base: Params, trained: Params) -> Params:
    return merged_params(config, trained, prepare(base)[1])

  shardings = param_shardings(mesh, abstract_params(dataclasses.replace(config, adapter=None)))
  return jax.jit(merge, out_shardings=shardings, donate_argnums=0)(base, trained), step
