"""Small sets of studies and tokens."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from chexmix_jax.data import studies, tokens
from chexmix_jax.data.sources import source
from chexmix_jax.tokenizers import text
from chexmix_jax.tokenizers.vocabulary import Vocabulary

SIZE = 16
_WORDS = ["the", "heart", "is", "not", "large", "clear", "lungs", "small", "left", "opacity"]


class FakeImageTokenizer:
  """A 4 x 4 grid of mean brightness, 32 levels."""

  grid = (4, 4)
  num_codes = 32
  fingerprint = "fake"

  def encode(self, pixels):
    n, size = pixels.shape[:2]
    step = size // 4
    means = pixels.reshape(n, 4, step, 4, step).mean((2, 4))
    return np.clip((means + 1) * 16, 0, 31).astype(np.int32)


def make_content(number, size):
  rng = np.random.default_rng(number)
  image = rng.integers(0, 256, (size, size), np.uint8)
  report = " ".join(rng.choice(_WORDS, rng.integers(3, 20)))
  return source.StudyContent(image, report, rng.integers(-2, 2, 14).astype(np.int8))


def make_source(number=50, **changes):
  """`number` generated studies, a fifth of them validation and a fifth test."""
  found = []
  for i in range(number):
    split = ("train", "train", "val", "train", "test")[i % 5]
    content = changes.get(i, functools.partial(make_content, i))
    found.append(source.Study(f"s{i}", f"p{i // 2}", split, f"row {i}", content))
  return source.Source({"source": "fake", "number": number}, tuple(found))


@pytest.fixture(scope="session")
def image_tokenizer():
  return FakeImageTokenizer()


@pytest.fixture
def fake_source():
  return make_source


@pytest.fixture(scope="session")
def studies_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("records") / "studies"
  studies.write_studies(make_source(), folder, SIZE, num_workers=1)
  return folder


@pytest.fixture(scope="session")
def text_tokenizer(studies_dir, tmp_path_factory):
  reports = studies.load_studies(studies_dir, "train").reports
  return text.train_sentencepiece(reports, 300, tmp_path_factory.mktemp("sp") / "sp.model")


@pytest.fixture(scope="session")
def tokens_dir(studies_dir, image_tokenizer, text_tokenizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp("records") / "tokens"
  vocabulary = Vocabulary.sentencepiece(text_tokenizer.vocab_size, image_tokenizer.num_codes)
  tokens.tokenize_studies(studies_dir, image_tokenizer, text_tokenizer, vocabulary, folder)
  return folder


@pytest.fixture
def write_annotation(tmp_path):
  """Writes an R2Gen annotation of grey images with one changed row; gives its path."""

  def write(number=3, **changes):
    (tmp_path / "images").mkdir(exist_ok=True)
    rows = []
    for i in range(number):
      pixels = np.random.default_rng(i).integers(0, 256, (20, 24), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
      rows.append({"id": f"p{i // 2}_{i}", "image_path": [f"{i}.png"], "labels": ["Edema"],
                   "report": f"Report  number {i}.\n"})  # fmt: skip
    rows[-1] |= changes
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"train": rows[:-1], "val": [], "test": rows[-1:]}))
    return path

  return write
