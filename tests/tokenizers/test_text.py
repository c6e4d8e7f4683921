import hypothesis
import pytest
from hypothesis import strategies

from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers import text

REPORTS = [
    "The heart is normal in size.",
    "There is a small left pleural effusion, and no pneumothorax.",
    "The lungs are clear. No focal consolidation.",
    "Mild cardiomegaly is unchanged; the mediastinum is normal.",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return text.train_sentencepiece(REPORTS, 320, tmp_path_factory.mktemp("sp") / "a" / "sp.model")


@hypothesis.given(strategies.text())
@hypothesis.settings(max_examples=300)
@hypothesis.example("a ▁ b\n\t<unk> <0x41> \x00 \ufeff 😀 e\u0301 </s>")
def test_any_text_comes_back_normalised(tokenizer, value):
  ids = tokenizer.encode(value)
  assert tokenizer.decode(ids) == text.normalise(value)
  assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_normalise_joins_white_space():
  assert text.normalise("  Left \n\t effusion.\u3000") == "Left effusion."


def test_it_learns_words(tokenizer):
  assert tokenizer.vocab_size == 320
  assert len(tokenizer.encode("The heart is normal.")) < len("The heart is normal.") / 2


def test_training_again_gives_the_same_file(tokenizer, tmp_path):
  again = text.train_sentencepiece(REPORTS, 320, tmp_path / "b.model")
  assert again.fingerprint == tokenizer.fingerprint
  loaded = text.SentencePieceTokenizer.load(tmp_path / "b.model")
  assert loaded.fingerprint == tokenizer.fingerprint
  assert loaded.encode(REPORTS[0]) == tokenizer.encode(REPORTS[0])


def test_text_longer_than_the_trainers_default_is_not_skipped(tmp_path):
  trained = text.train_sentencepiece(["zyxw " * 2000, *REPORTS], 300, tmp_path / "c.model")
  assert len(trained.encode("zyxw")) == 1


def test_at_most_takes_what_the_texts_can_fill(tmp_path):
  few = text.train_sentencepiece(REPORTS, 5000, tmp_path / "few.model", at_most=True)
  with pytest.raises(UserError, match=f"use at most {few.vocab_size}\\."):
    text.train_sentencepiece(REPORTS, 5000, tmp_path / "d.model")
  with pytest.raises(UserError, match="use at least"):
    text.train_sentencepiece(REPORTS, 10, tmp_path / "d.model", at_most=True)


def test_a_vocabulary_that_does_not_fit_names_the_bound(tmp_path):
  with pytest.raises(UserError, match=r"use at most (\d+)") as error:
    text.train_sentencepiece(REPORTS, 5000, tmp_path / "d.model")
  bound = int(str(error.value).rstrip(".").split()[-1])
  assert text.train_sentencepiece(REPORTS, bound, tmp_path / "e.model").vocab_size == bound
  with pytest.raises(UserError, match="use at least 2"):
    text.train_sentencepiece(REPORTS, 100, tmp_path / "d.model")
  with pytest.raises(UserError, match="no text"):
    text.train_sentencepiece(["", " "], 300, tmp_path / "d.model")
  assert [path.name for path in tmp_path.iterdir()] == ["e.model"]


def test_a_file_that_is_no_model_is_named(tmp_path):
  with pytest.raises(UserError, match=r"none\.model cannot be read"):
    text.SentencePieceTokenizer.load(tmp_path / "none.model")
  (tmp_path / "bad.model").write_bytes(b"not a model")
  with pytest.raises(UserError, match=r"bad\.model is not"):
    text.SentencePieceTokenizer.load(tmp_path / "bad.model")
