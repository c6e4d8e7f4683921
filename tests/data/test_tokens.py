import numpy as np
import pytest

from chexmix_jax.data import images, studies, tokens
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary


def test_tokens_are_those_of_the_studies(studies_dir, tokens_dir, image_tokenizer, text_tokenizer):
  for split in ("train", "val", "test"):
    table, source = tokens.load_tokens(tokens_dir, split), studies.load_studies(studies_dir, split)
    assert table.study_ids == source.study_ids and table.patient_ids == source.patient_ids
    codes = image_tokenizer.encode(images.to_float(source.images)[..., None])
    np.testing.assert_array_equal(table.codes, codes.reshape(len(codes), 16))
    assert [text_tokenizer.decode(ids) for ids in table.texts] == source.reports
    np.testing.assert_array_equal(table.labels, source.labels)
    assert table.codes.dtype == table.texts[0].dtype == np.int32


def test_card_holds_what_binds_the_tokens(tokens_dir, text_tokenizer):
  card = tokens.read_card(tokens_dir)
  assert Vocabulary(**card["vocabulary"]).num_text == text_tokenizer.vocab_size
  assert card["grid"] == [4, 4] and card["splits"]["train"] == 30


def test_check_card_refuses_another_tokenizer(tokens_dir, text_tokenizer):
  card = tokens.check_card(
      tokens_dir, Vocabulary.sentencepiece(300, 32), "fake", text_tokenizer.fingerprint
  )
  assert card == tokens.read_card(tokens_dir)
  with pytest.raises(UserError, match="another vocabulary"):
    tokens.check_card(tokens_dir, Vocabulary.sentencepiece(301, 32))
  with pytest.raises(UserError, match="another image tokenizer"):
    tokens.check_card(tokens_dir, image_tokenizer="other")
  with pytest.raises(UserError, match="another text tokenizer"):
    tokens.check_card(tokens_dir, text_tokenizer="other")


def test_tokenizing_again_does_nothing_and_other_settings_are_refused(
    studies_dir, tokens_dir, image_tokenizer, text_tokenizer
):
  before = {path.name: path.stat().st_mtime_ns for path in tokens_dir.iterdir()}
  vocabulary = Vocabulary.sentencepiece(300, 32)
  args = (studies_dir, image_tokenizer, text_tokenizer, vocabulary, tokens_dir)
  tokens.tokenize_studies(*args)
  assert {path.name: path.stat().st_mtime_ns for path in tokens_dir.iterdir()} == before
  image_tokenizer.fingerprint = "retrained"
  try:
    with pytest.raises(UserError, match="other input or settings"):
      tokens.tokenize_studies(*args)
  finally:
    del image_tokenizer.fingerprint


def test_a_vocabulary_of_another_size_is_refused(
    studies_dir, image_tokenizer, text_tokenizer, tmp_path
):
  for vocabulary, name in (
      (Vocabulary.sentencepiece(300, 64), "image"),
      (Vocabulary.sentencepiece(290, 32), "text"),
  ):
    with pytest.raises(UserError, match=f"The {name} tokenizer has"):
      tokens.tokenize_studies(
          studies_dir, image_tokenizer, text_tokenizer, vocabulary, tmp_path / "out"
      )
  assert not (tmp_path / "out").exists()
