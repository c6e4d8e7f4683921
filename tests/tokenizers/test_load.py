import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.bpe import BPETokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer
from chexmix_jax.tokenizers.text import SentencePieceTokenizer, train_sentencepiece


def test_either_kind_is_read(bpe_dir, tmp_path):
  assert isinstance(load_text_tokenizer(bpe_dir), BPETokenizer)
  trained = train_sentencepiece(["The heart is normal."], 280, tmp_path / "sp.model")
  loaded = load_text_tokenizer(tmp_path / "sp.model")
  assert isinstance(loaded, SentencePieceTokenizer)
  assert loaded.fingerprint == trained.fingerprint


@pytest.mark.parametrize("name", ["", "none.model"])
def test_what_is_neither_is_named(tmp_path, name):
  with pytest.raises(UserError, match="is no text tokenizer; name the --output of") as error:
    load_text_tokenizer(tmp_path / name)
  assert str(tmp_path / name) in str(error.value)
