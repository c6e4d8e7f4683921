"""An adapted image tokenizer: what it starts from, how it is compared, and where its codes go."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from chexmix_jax import train_image_tokenizer
from chexmix_jax.data import images, studies, tokens
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.train_image_tokenizer import ImageTokenizerConfig
from chexmix_jax.training.adapted_image_tokenizer import compare, load_base
from chexmix_jax.training.image_tokenizer import ImageTokenizerTrainConfig


@pytest.fixture(scope="module")
def base(model_dir):
  """(folder, tokenizer) beside a converted model."""
  folder = model_dir / "image_tokenizer"
  return folder, ImageTokenizer.load(folder)


def brighter(tokenizer):
  """The same, whose decoder adds 0.5, as if adapted."""
  params = jax.tree.map(np.asarray, tokenizer.params)
  params["decoder"]["conv_out"]["bias"] = params["decoder"]["conv_out"]["bias"] + 0.5
  return ImageTokenizer(tokenizer.config, params, tokenizer.codes_fingerprint)


def test_the_comparison_by_hand(base, studies_dir):
  adapted = brighter(base[1])
  pixels = images.to_float(studies.load_studies(studies_dir, "val").images)[..., None]
  found = compare(base[1], adapted, pixels)
  assert found["same_codes"] == 1
  codes = base[1].encode(pixels)
  for name, tokenizer in (("base", base[1]), ("adapted", adapted)):
    error = np.mean(((tokenizer.decode(codes) - pixels) / 2) ** 2, axis=(1, 2, 3))
    assert found[f"{name}_psnr"] == pytest.approx(np.mean(-10 * np.log10(error)), rel=1e-4)
  params = {**adapted.params, "codebook": adapted.params["codebook"][::-1]}
  other = compare(base[1], ImageTokenizer(adapted.config, params), pixels)
  codes_of_other = 31 - codes
  assert other["same_codes"] == pytest.approx(np.mean(codes_of_other == codes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_codes": 64}, r"has num_codes=32, not 64; take the settings of .*config\.json"),
        ({"width": 16, "z_channels": 4}, r"has width=8, not 16, z_channels=8, not 4"),
    ],
)
def test_another_shape_is_named(base, change, message):
  with pytest.raises(UserError, match=message):
    load_base(base[0], dataclasses.replace(base[1].config, **change))


def test_how_it_is_computed_may_differ(base):
  config = dataclasses.replace(base[1].config, dtype="bfloat16")
  assert load_base(base[0], config).fingerprint == base[1].fingerprint


def test_the_command_says_how_the_two_compare(base, studies_dir, tmp_path, capsys, monkeypatch):
  adapted = brighter(base[1])
  monkeypatch.setattr(train_image_tokenizer, "train_image_tokenizer", lambda *_: adapted)
  train = ImageTokenizerTrainConfig(
      init=str(base[0]), codebook_start=0, restart_every=0, batch_size=2
  )
  (tmp_path / "new.training").mkdir()
  config = ImageTokenizerConfig(base[1].config, train)
  train_image_tokenizer.run(studies_dir, tmp_path / "new", config)
  facts = json.loads((tmp_path / "new.training" / "comparison.json").read_text())
  assert facts["pictures"] == studies.read_card(studies_dir)["splits"]["val"]
  said = capsys.readouterr().out
  assert f"{facts['adapted_psnr']:.2f} dB by {tmp_path / 'new'}" in said
  assert "100% of the codes are the same" in said


def test_its_tokens_go_with_those_of_the_base(base, studies_dir, text_tokenizer, tmp_path):
  tokenizer = base[1]
  adapted = brighter(tokenizer)
  vocabulary = Vocabulary.sentencepiece(text_tokenizer.vocab_size, tokenizer.num_codes)
  for name, each in (("old", tokenizer), ("new", adapted)):
    write_tokens(studies_dir, each, text_tokenizer, vocabulary, tmp_path / name)
  card = tokens.read_joint_card([tmp_path / "old", tmp_path / "new"])
  assert card["image_tokenizer"] == tokenizer.fingerprint
  made_of = [request["image_tokenizer"] for request in card["request"]]
  assert made_of == [tokenizer.fingerprint, adapted.fingerprint]
  # Scores are of tokens made by the very tokenizer that is named.
  tokens.check_card(tmp_path / "new", image_tokenizer=adapted.fingerprint)
  with pytest.raises(UserError, match="new was made with another image tokenizer"):
    tokens.check_card(tmp_path / "new", image_tokenizer=tokenizer.fingerprint)
  # A folder of the base's tokens is not taken for one of the adapted tokenizer's.
  with pytest.raises(UserError, match="other input or settings"):
    write_tokens(studies_dir, adapted, text_tokenizer, vocabulary, tmp_path / "old")
