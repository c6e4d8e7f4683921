import pytest

from chexmix_jax import prepare, tokenize, train_text_tokenizer
from chexmix_jax.data import studies, tokens
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.sources import r2gen
from chexmix_jax.data.write_studies import WriteOptions
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers import bpe, text
from chexmix_jax.tokenizers.vocabulary import Vocabulary


def test_from_an_annotation_to_tokens(
    write_annotation, tmp_path, image_tokenizer, monkeypatch, capsys
):
  folder = tmp_path / "out"
  prepare.main([
      "--source=r2gen", f"--data_dir={write_annotation(20)}", "--size=16", "--workers=1",
      f"--output={folder / 'studies'}",
  ])  # fmt: skip
  assert studies.read_card(folder / "studies")["splits"] == {"train": 19, "test": 1}
  train_text_tokenizer.main([
      f"--studies={folder / 'studies'}", "--vocab_size=280", f"--output={folder / 'sp.model'}",
  ])  # fmt: skip
  # The tokenizer of the tests instead of a network.
  monkeypatch.setattr(tokenize.ImageTokenizer, "load", lambda path: image_tokenizer)
  tokenize.main([
      f"--studies={folder / 'studies'}", "--image_tokenizer=any", f"--output={folder / 'tokens'}",
      f"--text_tokenizer={folder / 'sp.model'}",
  ])  # fmt: skip
  table = tokens.load_tokens(folder / "tokens", "test")
  reader = text.SentencePieceTokenizer.load(folder / "sp.model")
  assert [reader.decode(ids) for ids in table.texts] == ["Report number 19."]
  assert "19 train, 1 test" in capsys.readouterr().out


def test_a_folder_of_bpe_files_gives_the_published_layout(
    studies_dir, bpe_dir, tmp_path, image_tokenizer, monkeypatch
):
  monkeypatch.setattr(tokenize.ImageTokenizer, "load", lambda path: image_tokenizer)
  card = tokenize.run(studies_dir, tmp_path, bpe_dir, tmp_path / "tokens")
  reader = bpe.BPETokenizer.load(bpe_dir)
  assert card["vocabulary"] == Vocabulary.bpe(reader.vocab_size, 32).to_dict()
  assert card["text_tokenizer"] == reader.fingerprint
  table = tokens.load_tokens(tmp_path / "tokens", "test")
  reports = studies.load_studies(studies_dir, "test").reports
  assert [reader.decode(ids) for ids in table.texts] == reports


def test_the_text_tokenizer_sees_the_training_split_only(tmp_path, write_annotation):
  data = r2gen.studies(write_annotation(4, report="zzzzzzzzzzzzzzzzzzzzzzzz"), tmp_path)
  prepare.run(data, tmp_path / "studies", LoadOptions(8), WriteOptions())
  tokenizer = train_text_tokenizer.run(tmp_path / "studies", 275, tmp_path / "sp.model")
  # A character that was never seen is spelt in bytes.
  assert len(tokenizer.encode("zz")) >= 2


def test_the_text_tokenizer_reads_questions_and_answers(tmp_path, fake_source):
  changes = {i: {"report": None, "question": "qqqq", "answer": "zzzz"} for i in range(5)}
  prepare.run(fake_source(5, changes), tmp_path / "studies", LoadOptions(8), WriteOptions())
  tokenizer = train_text_tokenizer.run(
      tmp_path / "studies", 300, tmp_path / "sp.model", at_most=True
  )
  assert len(tokenizer.encode("qqqq zzzz")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=r2gen"], "needs a path"),
        (["--source=phantom", "--data_dir=x"], "does not go with"),
        (["--source=phantom", "--num_studies=-1"], "needs a number"),
        (["--source=phantom", "--size=0"], "size=0"),
        (["--source=phantom", "--workers=0"], "workers=0"),
        (["--source=phantom", "--sections=findings,all"], "'all' is no section"),
        (["--source=phantom", "--max_refused=2"], "max_refused=2"),
        (["--source=phantom", "--process_index=1"], "--process_index=1 must lie"),
        (["--source=table", "--data_dir=x"], "--columns belongs"),
        (["--source=table", "--data_dir=x", "--columns=image"], "of the form image=COLUMN"),
    ],
)
def test_bad_arguments_of_prepare(tmp_path, arguments, message):
  with pytest.raises(UserError, match=message):
    prepare.main([*arguments, f"--output={tmp_path / 'out'}"])
  assert list(tmp_path.iterdir()) == []
