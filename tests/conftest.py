"""Shared fixtures: the project's reference files where they are there, small studies and tokens."""

import functools
import pathlib

import numpy as np
import pytest

from chexmix_jax.data import studies, tokens
from chexmix_jax.data.sources import source
from chexmix_jax.tokenizers import text
from chexmix_jax.tokenizers.vocabulary import Vocabulary

SIZE = 16
_WORDS = ["the", "heart", "is", "not", "large", "clear", "lungs", "small", "left", "opacity"]


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder `shared` beside the repository; tests that need it skip where it is absent."""
  folder = pathlib.Path(__file__).resolve().parents[2] / "shared"
  if not folder.is_dir():
    pytest.skip(f"the reference files are not at {folder}")
  return folder


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
