import dataclasses
import json

import numpy as np
import pytest

from chexmix_jax.data import images, studies, tokens
from chexmix_jax.data.documents import TEXT_PARTS
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.sources import source
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.errors import BadRow, UserError
from chexmix_jax.labels import INDEX
from chexmix_jax.tokenizers.vocabulary import Vocabulary


def test_tokens_are_those_of_the_studies(studies_dir, tokens_dir, image_tokenizer, text_tokenizer):
  for split in ("train", "val", "test"):
    table = tokens.load_tokens(tokens_dir, split)
    original = studies.load_studies(studies_dir, split)
    assert table.study_ids == original.study_ids and table.patient_ids == original.patient_ids
    codes = image_tokenizer.encode(images.to_float(original.images)[..., None])
    np.testing.assert_array_equal(table.codes, codes.reshape(len(codes), 16))
    assert [text_tokenizer.decode(ids) for ids in table.texts] == original.reports
    np.testing.assert_array_equal(table.labels, original.labels)
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
  write_tokens(*args)
  assert {path.name: path.stat().st_mtime_ns for path in tokens_dir.iterdir()} == before
  image_tokenizer.fingerprint = "retrained"
  try:
    with pytest.raises(UserError, match="other input or settings"):
      write_tokens(*args)
  finally:
    del image_tokenizer.fingerprint


def test_pictures_of_all_views_priors_and_splits_of_nothing(
    fake_source, image_tokenizer, text_tokenizer, tmp_path
):
  def bad(size):
    raise BadRow("damaged image", "The image x.png is damaged.")

  several = [fake_source(i + 1).studies[i].pictures[0] for i in (30, 31, 32)]
  several = [
      dataclasses.replace(picture, view=view, file=f"{view}.png")
      for picture, view in zip(several, ("unknown", "lateral", "frontal"), strict=True)
  ]
  changes = {i: {"pictures": (source.Picture("frontal", f"{i}", bad),)} for i in range(2, 30, 5)}
  changes |= {
      0: {"pictures": tuple(several), "patient_id": "p", "order": 2},
      1: {"patient_id": "p", "order": 1}, 3: {"pictures": ()}, 5: {"report": None},
  }  # fmt: skip
  options = WriteOptions(max_refused=0.5, shard_size=4)
  write_studies(fake_source(30, changes), tmp_path / "studies", LoadOptions(16), options)
  vocabulary = Vocabulary.sentencepiece(300, 32)
  parts = [
      write_tokens(
          tmp_path / "studies", image_tokenizer, text_tokenizer, vocabulary, tmp_path / "tokens",
          index, 2,
      )
      for index in range(2)
  ]  # fmt: skip
  assert parts[0] is None and parts[1]["splits"] == {"train": 18, "val": 0, "test": 6}
  rows = list(tokens.open_tokens(tmp_path / "tokens", "train"))
  assert rows[0]["views"].tolist() == [0, 1, 2] and rows[0]["codes"].shape == (3, 16)
  pixels = np.stack([picture.read(16) for picture in reversed(several)])
  codes = image_tokenizer.encode(images.to_float(pixels)[..., None])
  np.testing.assert_array_equal(rows[0]["codes"], codes.reshape(3, 16))
  np.testing.assert_array_equal(rows[0]["prior_ids"], rows[1]["report_ids"])
  assert rows[2]["codes"].shape == (0, 16) and not len(rows[3]["report_ids"])
  index = tokens.read_index(tmp_path / "tokens", "train")
  assert index["pictures"][:4].tolist() == [3, 1, 0, 1]
  assert index["lateral"][:2].tolist() == [1, 0]
  assert index["prior"][0] == len(rows[1]["report_ids"])
  assert len(tokens.load_tokens(tmp_path / "tokens", "train").codes) == 16
  with pytest.raises(UserError, match=r"No study of val in .* has pictures and report"):
    tokens.load_tokens(tmp_path / "tokens", "val")


def test_all_texts_of_a_study_are_tokenized(
    fake_source, image_tokenizer, text_tokenizer, tmp_path
):
  labels = np.full(14, -2, np.int8)
  labels[[INDEX["Edema"], INDEX["Fracture"]]] = 1, -1
  changes = {
      0: {
          "report": source.given_sections(
              indication="Cough  ___ .", findings="Not clear. Large heart.", impression="2. Small."
          ),
          "question": "Is it large?", "answer": "left", "labels": labels,
      },
      1: {"labels": np.full(14, -2, np.int8)},
  }  # fmt: skip
  write_studies(fake_source(3, changes), tmp_path / "studies", LoadOptions(16), WriteOptions())
  vocabulary = Vocabulary.sentencepiece(300, 32)
  args = (tmp_path / "studies", image_tokenizer, text_tokenizer, vocabulary, tmp_path / "tokens")
  write_tokens(*args)
  row, other = tokens.open_tokens(tmp_path / "tokens", "train")
  expected = {
      "report": "Not clear. Large heart. Small.", "prior": "", "indication": "Cough.",
      "findings": "Not clear. Large heart.", "impression": "Small.", "question": "Is it large?",
      "answer": "left", "labels": "There is pulmonary edema.",
  }  # fmt: skip
  texts = {name: text_tokenizer.decode(row[f"{name}_ids"]) for name in TEXT_PARTS}
  assert texts == expected
  assert len(row["findings_sentences"]) == 2
  index = tokens.read_index(tmp_path / "tokens", "train")
  for name in TEXT_PARTS:
    assert index[name].tolist() == [len(row[f"{name}_ids"]), len(other[f"{name}_ids"])]
  assert index["labels"][1] == index["question"][1] == 0
  # Records of an older version hold fewer texts.
  path = tmp_path / "tokens" / "dataset_card.json"
  card = json.loads(path.read_text())
  del card["format"]
  path.write_text(json.dumps(card))
  for read in (tokens.read_index, tokens.open_tokens):
    with pytest.raises(UserError, match=r"of another version .* delete it and run tokenize again"):
      read(tmp_path / "tokens", "train")
  with pytest.raises(UserError, match="run tokenize again"):
    write_tokens(*args)


def test_a_vocabulary_of_another_size_is_refused(
    studies_dir, image_tokenizer, text_tokenizer, tmp_path
):
  for vocabulary, name in (
      (Vocabulary.sentencepiece(300, 64), "image"),
      (Vocabulary.sentencepiece(290, 32), "text"),
  ):
    with pytest.raises(UserError, match=f"The {name} tokenizer has"):
      write_tokens(
          studies_dir, image_tokenizer, text_tokenizer, vocabulary, tmp_path / "out"
      )
  assert not (tmp_path / "out").exists()
