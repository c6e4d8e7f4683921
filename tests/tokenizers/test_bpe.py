"""Byte-level BPE against transformers' CodeGenTokenizer, of which the ids below are."""

import csv
import json
import random

import hypothesis
import pytest
from hypothesis import strategies

from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers import bpe
from chexmix_jax.tokenizers.vocabulary import WHITE_SPACE_RUNS, Vocabulary

END_OF_TEXT = "<|endoftext|>"
GOLDEN_SMALL = {
    "Then the heart on the  left\n\n\t\thealed.":
        [51, 257, 77, 258, 264, 220, 78, 77, 258, 302, 267, 271, 310, 257, 64, 265, 67, 13],
    f"x{33 * ' '}y\t\t\t z": [87, 273, 302, 88, 309, 220, 89],
}  # fmt: skip
GOLDEN_GPT2 = {
    "": [],
    "The heart is normal in size. No pleural effusion.":
        [464, 2612, 318, 3487, 287, 2546, 13, 1400, 3339, 1523, 914, 4241, 13],
    " mild left-sided\n\n  opacity ;   stable.":
        [11607, 1364, 12, 22339, 628, 50286, 404, 4355, 2162, 50285, 31284, 13],
    f"x{33 * ' '}y\t\t\tz": [87, 50257, 50286, 88, 50293, 89],
    "Größe 3×4 µm — 心 😀":
        [8642, 9101, 39683, 68, 513, 12906, 19, 31324, 76, 851, 10263, 123, 225, 30325, 222],
    "a\tb  ": [64, 197, 65, 50286],
}  # fmt: skip


@pytest.fixture(scope="module")
def small(bpe_dir):
  return bpe.BPETokenizer.load(bpe_dir)


@pytest.fixture(scope="module")
def gpt2_dir(shared):
  return shared / "data" / "gpt2_bpe"


@pytest.fixture(scope="module")
def gpt2(gpt2_dir):
  return bpe.BPETokenizer.load(gpt2_dir)


def texts_of(vocab, number):
  """Random texts of pieces that meet in every way: tokens, white space, Unicode, special names."""
  rng = random.Random(0)
  tokens = [token.replace("Ġ", " ").replace("Ċ", "\n") for token in vocab]
  others = ["\t", "\n", "\r\n", "é", "e\u0301", "心", "😀", "\u00a0", "\u2581", "'s", " 10", "\x00"]

  def piece():
    kind = rng.random()
    if kind < 0.3:
      return rng.choice(" \t\n") * rng.randrange(1, 40)
    return rng.choice(tokens if kind < 0.8 else others)

  return ["".join(piece() for _ in range(rng.randrange(1, 30))) for _ in range(number)]


def check_against_transformers(tokenizer, folder, texts):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  vocab = json.loads((folder / "vocab.json").read_text())
  lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
  merges = [tuple(line.split(" ")) for line in lines[1:] if line]
  theirs = transformers.CodeGenTokenizer(vocab, merges)
  theirs.add_tokens([transformers.AddedToken(run, special=False) for run in WHITE_SPACE_RUNS])
  assert len(theirs) == tokenizer.vocab_size
  for text in texts:
    ids = tokenizer.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert tokenizer.decode(ids) == theirs.decode(ids) == text
  rng = random.Random(1)
  for _ in range(100):
    ids = rng.choices(range(tokenizer.vocab_size), k=20)
    assert tokenizer.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("text", GOLDEN_SMALL)
def test_ids_of_a_small_vocabulary_are_transformers(small, text):
  assert small.encode(text) == GOLDEN_SMALL[text]
  assert small.decode(GOLDEN_SMALL[text]) == text


@pytest.mark.parametrize("text", GOLDEN_GPT2)
def test_ids_of_gpt2s_vocabulary_are_transformers(gpt2, text):
  assert gpt2.encode(text) == GOLDEN_GPT2[text]
  assert gpt2.decode(GOLDEN_GPT2[text]) == text


def test_agrees_with_transformers_on_a_small_vocabulary(small, bpe_dir):
  vocab = json.loads((bpe_dir / "vocab.json").read_text())
  del vocab[END_OF_TEXT]  # Theirs reads it as the special id.
  check_against_transformers(small, bpe_dir, texts_of(vocab, 200))


def test_agrees_with_transformers_on_gpt2s_vocabulary(gpt2, gpt2_dir, shared):
  vocab = json.loads((gpt2_dir / "vocab.json").read_text())
  del vocab[END_OF_TEXT]
  with open(shared / "data/openi/indiana_reports.csv", newline="", encoding="utf-8") as file:
    reports = [row["findings"] for row in csv.DictReader(file)][:300]
  check_against_transformers(gpt2, gpt2_dir, [*reports, *texts_of(vocab, 300)])


@hypothesis.given(strategies.text())
@hypothesis.settings(max_examples=300)
@hypothesis.example("a ▁ Ġ\r\n\t\t  <unk> \x00 \ufeff 😀 e\u0301 . , <|endoftext|><|img|>")
def test_any_text_comes_back(small, value):
  ids = small.encode(value)
  assert small.decode(ids) == value
  assert all(0 <= i < small.vocab_size for i in ids)


def test_the_longest_run_comes_first(small):
  first = small.vocab_size - len(WHITE_SPACE_RUNS)
  for i, run in enumerate(WHITE_SPACE_RUNS):
    assert small.encode(run) == [first + i] and small.decode([first + i]) == run
  assert small.encode(70 * " ") == [first, first, first + 23]
  assert small.encode(20 * "\t") == [first + 30, first + 30, first + 37]


def test_no_text_spells_a_special_id(small):
  for text in (END_OF_TEXT, f"a{END_OF_TEXT} b", "<|img|>", "<|extra_0|>"):
    ids = small.encode(text)
    assert max(ids) < small.vocab_size - len(WHITE_SPACE_RUNS) - 1
    assert len(ids) > 5 and small.decode(ids) == text


def test_every_id_has_a_text(small):
  for i in range(small.vocab_size):
    assert small.decode([i])
  accent = small.encode("é")
  assert len(accent) == 2 and small.decode(accent[:1]) == "\ufffd"
  assert small.decode([*accent[:1], *small.encode(" left")]) == "\ufffd left"


def test_gpt2s_ids_are_the_published_models(gpt2):
  vocabulary = Vocabulary.published()
  assert gpt2.vocab_size == vocabulary.num_text
  assert gpt2.decode([vocabulary.eot]) == END_OF_TEXT
  assert gpt2.decode([50257, 50286, 50287, 50294]) == 33 * " " + 11 * "\t"


def test_saved_files_are_those_that_were_read(small, bpe_dir, tmp_path):
  small.save(tmp_path / "a" / "copy")
  assert sorted(path.name for path in (tmp_path / "a" / "copy").iterdir()) == [
      "merges.txt", "vocab.json",
  ]  # fmt: skip
  for name in ("vocab.json", "merges.txt"):
    assert (tmp_path / "a" / "copy" / name).read_bytes() == (bpe_dir / name).read_bytes()
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file cannot be written"):
    small.save(tmp_path / "file")


def test_the_fingerprint_is_of_the_ids_not_of_the_layout_of_the_files(small, bpe_dir):
  vocab, merges = ((bpe_dir / name).read_bytes() for name in ("vocab.json", "merges.txt"))
  spread = json.dumps(json.loads(vocab), ensure_ascii=False, indent=1).encode()
  assert bpe.BPETokenizer(spread, merges.replace(b"\n", b"\r\n")).fingerprint == small.fingerprint
  fewer = bpe.BPETokenizer(vocab, merges[: merges.rindex(b"\n", 0, -1)])
  swapped = vocab.replace(b'"!": 0', b'"!": 1').replace(b'"\\"": 1', b'"\\"": 0')
  others = {fewer.fingerprint, bpe.BPETokenizer(swapped, merges).fingerprint}
  assert len(others | {small.fingerprint}) == 3


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vocab.json", lambda vocab: b"{", r"vocab\.json is no JSON"),
        ("vocab.json", lambda vocab: b"\xff", r"vocab\.json is no JSON"),
        ("vocab.json", lambda vocab: b"[]", r"vocab\.json must map"),
        ("vocab.json", lambda vocab: vocab.replace(b": 5,", b": 6,"), r"vocab\.json must map"),
        ("vocab.json", lambda vocab: vocab.replace(b": 5,", b': "5",'), r"vocab\.json must map"),
        ("vocab.json", lambda vocab: vocab.replace(b"<|end", b"<|no"), r"must end with <\|endof"),
        ("vocab.json", lambda vocab: vocab[:-1] + b', "  ": 273}', r"leave out the tokens added"),
        ("vocab.json", lambda vocab: vocab.replace(b'"A"', b'"AA"'), "lacks 1 of the 256 bytes"),
        ("merges.txt", lambda merges: b"\xff", r"merges\.txt is no UTF-8"),
        ("merges.txt", lambda merges: merges + b"a b c\n", r"Line 18 of merges\.txt"),
        ("merges.txt", lambda merges: merges + b"ab\n", r"Line 18 of merges\.txt"),
        ("merges.txt", lambda merges: merges + b"q q\n", "joins 'q' and 'q'"),
        ("merges.txt", lambda merges: merges + b"<|endoftext |>\n", "joins '<|endoftext' and"),
    ],
)
def test_damaged_files_are_named(bpe_dir, tmp_path, name, change, message):
  for file in bpe_dir.iterdir():
    content = file.read_bytes()
    (tmp_path / file.name).write_bytes(change(content) if file.name == name else content)
  with pytest.raises(UserError, match=message) as error:
    bpe.BPETokenizer.load(tmp_path)
  assert str(tmp_path) in str(error.value)


def test_a_missing_file_is_named(bpe_dir, tmp_path):
  (tmp_path / "vocab.json").write_bytes((bpe_dir / "vocab.json").read_bytes())
  with pytest.raises(UserError, match=r"merges\.txt cannot be read"):
    bpe.BPETokenizer.load(tmp_path)
