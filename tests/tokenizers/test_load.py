import hypothesis
import pytest
from hypothesis import strategies

from chexmix_jax import extend_text_tokenizer
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers import load
from chexmix_jax.tokenizers.bpe import BPETokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer
from chexmix_jax.tokenizers.text import (
  SentencePieceTokenizer,
  base_fingerprint,
  normalise,
  train_sentencepiece,
)

TOKENS = ("<finding>", "coração", "coração aumentado", "<fi", "ä")


@pytest.fixture(scope="module", params=["sentencepiece", "bpe"])
def both(request, bpe_dir, tmp_path_factory):
  """A tokenizer of either kind, where it is, and what the command makes of it."""
  folder, path = tmp_path_factory.mktemp("extended"), bpe_dir
  if request.param == "sentencepiece":
    path = folder / "sp.model"
    train_sentencepiece(["The heart is normal.", "No effusion."], 280, path)
  (folder / "tokens.txt").write_text("\n".join(TOKENS), encoding="utf-8")
  extend_text_tokenizer.main([
      f"--text_tokenizer={path}", f"--tokens={folder / 'tokens.txt'}",
      f"--output={folder / 'extended'}",
  ])  # fmt: skip
  return load_text_tokenizer(path), load_text_tokenizer(folder / "extended"), path


_PIECES = [*TOKENS, "coraçã", "finding>", "the heart", " ", "  ", "\n", "Größe", "é", "😀", "<find"]


@hypothesis.given(strategies.lists(strategies.sampled_from(_PIECES)).map("".join))
@hypothesis.settings(max_examples=100)
def test_an_extended_one_finds_its_tokens_and_does_the_rest_as_before(both, value):
  base, extended, _ = both
  is_bpe = isinstance(base, BPETokenizer)
  ids = extended.encode(value)
  assert extended.decode(ids) == (value if is_bpe else normalise(value))
  # Read from the left, the longest first.
  expected, rest = [], value if is_bpe else normalise(value)
  while rest:
    found = max((t for t in TOKENS if rest.startswith(t)), key=len, default="")
    expected += [found] if found else []
    rest = rest[len(found) or 1 :]
  assert [TOKENS[i - base.vocab_size] for i in ids if i >= base.vocab_size] == expected
  if not expected:
    assert ids == base.encode(value)


def test_an_extended_one_keeps_the_ids_and_knows_its_base(both):
  base, extended, path = both
  assert extended.vocab_size == base.vocab_size + len(TOKENS) and extended.added == TOKENS
  for i in range(base.vocab_size):
    assert extended.decode([i]) == base.decode([i])
  assert base_fingerprint(extended.fingerprint) == base.fingerprint != extended.fingerprint
  other = type(base).load(path, TOKENS[::-1])
  assert other.fingerprint != extended.fingerprint
  assert base_fingerprint(other.fingerprint) == base.fingerprint


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((), "There is no token to add"),
        (("a b", " b"), "Token 2, ' b', is empty, repeated, or has white space"),
        (("ab", "ab"), "Token 2, 'ab'"),
        (("left",), "'left' is a token of the text tokenizer already"),
    ],
)
def test_tokens_that_cannot_be_added_are_named(bpe_dir, tmp_path, tokens, message):
  with pytest.raises(UserError, match=message):
    load.extend_text_tokenizer(bpe_dir, tokens, tmp_path / "extended")
  assert list(tmp_path.iterdir()) == []


def test_one_is_extended_once(bpe_dir, tmp_path):
  load.extend_text_tokenizer(bpe_dir, ("<a>",), tmp_path / "extended")
  with pytest.raises(UserError, match="was extended before; extend its base by all"):
    load.extend_text_tokenizer(tmp_path / "extended", ("<b>",), tmp_path / "again")
  with pytest.raises(UserError, match="is there already"):
    load.extend_text_tokenizer(bpe_dir, ("<b>",), tmp_path / "extended")


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
