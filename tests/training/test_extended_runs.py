"""Runs on tokens with text tokens that their base does not know."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import read_item

from chexmix_jax import convert
from chexmix_jax.conversion.from_torch import _vocabulary
from chexmix_jax.data.tokens import load_tokens, read_card
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.errors import UserError
from chexmix_jax.inference.model import load_model
from chexmix_jax.inference.reports import read_report
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.tokenizers.text import SentencePieceTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.base import base_card, load_base
from chexmix_jax.training.checkpoint import read_job, saved_steps
from chexmix_jax.training.loop import train

ADDED = ("opacity", "art is")  # In the middle of words, and over several of them.


@pytest.fixture(scope="module")
def extended_tokens(studies_dir, image_tokenizer, text_tokenizer, tmp_path_factory):
  """The folder of tokens, their vocabulary and their text tokenizer."""
  extended = SentencePieceTokenizer(text_tokenizer.model, ADDED)
  base = Vocabulary.sentencepiece(text_tokenizer.vocab_size, image_tokenizer.num_codes)
  vocabulary = base.extended(len(ADDED))
  folder = tmp_path_factory.mktemp("extended") / "tokens"
  write_tokens(studies_dir, image_tokenizer, extended, vocabulary, folder)
  return folder, vocabulary, extended


@pytest.fixture(scope="module")
def settings(config, whole_run, extended_tokens):
  """Two steps that adapt the run, with the rows of the new tokens."""
  folder, vocabulary, _ = extended_tokens
  rows = (vocabulary.extra_offset, vocabulary.extra_offset + len(ADDED))
  return dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, adapter=AdapterConfig(rank=2, rows=rows)),
      data=dataclasses.replace(config.data, tokens=str(folder)),
      optimizer=dataclasses.replace(config.optimizer, learning_rate=0.1, warmup_steps=0),
      steps=2, init=str(whole_run),
  )  # fmt: skip


@pytest.fixture(scope="module")
def extended_run(settings, tmp_path_factory):
  folder = tmp_path_factory.mktemp("extended") / "run"
  train(settings, folder)
  return folder


def test_texts_hold_the_new_tokens_and_come_back(tokens_dir, extended_tokens):
  folder, vocabulary, tokenizer = extended_tokens
  new = vocabulary.extra_offset + np.arange(len(ADDED))
  ours, theirs = load_tokens(folder, "train").texts, load_tokens(tokens_dir, "train").texts
  assert np.isin(np.concatenate(ours), new).any() and not np.isin(new, np.concatenate(theirs)).any()
  base = SentencePieceTokenizer(tokenizer.model)  # Of all pieces.
  for extended, plain in zip(ours, theirs, strict=True):
    text = read_report(vocabulary, tokenizer, extended)
    assert text == base.decode(plain) and text
    if not np.isin(extended, new).any():
      np.testing.assert_array_equal(extended, plain)


def test_a_base_gets_rows_that_are_the_mean_of_the_texts(whole_run, settings, extended_tokens):
  _, vocabulary, _ = extended_tokens
  before = read_item(whole_run, saved_steps(whole_run)[-1], "params")
  model = dataclasses.replace(settings.model, adapter=None, vocab_size=vocabulary.size)
  after = jax.device_get(load_base(whole_run, model, make_mesh()))
  size, num_text = before["lm_head"]["bias"].size, vocabulary.num_text
  for room, name, axis in (("embed", "embedding", 0), ("lm_head", "kernel", 1)):
    old, new = (np.moveaxis(p[room][name], axis, 0) for p in (before, after))
    np.testing.assert_array_equal(new[:size], old)
    assert len(new) == vocabulary.size > size
    expected = np.broadcast_to(old[:num_text].mean(0), new[size:].shape)
    np.testing.assert_allclose(new[size:], expected, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, after["layers"], before["layers"])


def test_an_adapter_trains_the_rows_and_leaves_those_of_old_ids(
    whole_run, extended_run, extended_tokens
):
  _, vocabulary, _ = extended_tokens
  merged = load_model(extended_run)
  assert merged.vocabulary == vocabulary
  old = read_item(whole_run, saved_steps(whole_run)[-1], "params")["embed"]["embedding"]
  new = np.asarray(merged.params["embed"]["embedding"])
  np.testing.assert_array_equal(new[: len(old)], old)
  first, second, *rest = new[len(old) :]
  assert np.abs(first - rest[0]).max() > 0.01 and np.abs(first - second).max() > 0.01


def test_it_goes_to_torch_but_not_to_peft(extended_run, extended_tokens, tmp_path):
  _, vocabulary, _ = extended_tokens
  convert.main(["to_torch", f"--checkpoint={extended_run}", f"--output={tmp_path / 'torch'}"])
  read = _vocabulary(tmp_path / "torch" / "ids.json", vocabulary.size, vocabulary.num_codes)
  assert read == vocabulary
  with pytest.raises(UserError, match="has text tokens that its base has no rows for"):
    convert.main(["to_peft", f"--checkpoint={extended_run}", f"--output={tmp_path / 'peft'}"])
  assert not (tmp_path / "peft").exists()


def test_what_does_not_fit_is_named(settings, extended_tokens, tmp_path, whole_run):
  folder, vocabulary, _ = extended_tokens
  adapter = dataclasses.replace(settings.model.adapter, rows=())
  untrained = dataclasses.replace(settings.model, adapter=adapter)
  first = vocabulary.extra_offset
  with pytest.raises(UserError, match=rf"set model\.adapter\.rows=\({first}, {first + 2}\) to"):
    train(dataclasses.replace(settings, model=untrained), tmp_path / "run")
  # Added to another tokenizer: the base's card stays as it is, and does not fit.
  card = {**read_card(folder), "text_tokenizer": "0+1"}
  assert base_card(whole_run, card, None) == read_job(whole_run)["tokens"]
  assert not (tmp_path / "run").exists()
