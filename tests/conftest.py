"""Shared fixtures: the project's reference files where they are there, small studies and tokens."""

import dataclasses
import functools
import gc
import json
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from chexmix_jax import config as config_lib
from chexmix_jax.data import studies
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.sources import source
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.models import vqgan
from chexmix_jax.models.transformer import TransformerConfig, abstract_params
from chexmix_jax.tokenizers import text
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary

# No test is timed.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# Orbax has every replica save a slice of an array: a program to compile for each of eight devices
# and each shape. What is small is saved by one, as on one device; test_two_processes.py has slices.
ocp.type_handlers.get_type_handler(jax.Array)._min_slice_bytes_for_replica_parallel = 1 << 20
# What was imported is never garbage, and a checkpoint's reading collects all that is.
gc.freeze()

SIZE = 16
# Ġ stands for a space, Ċ for a new line.
_MERGES = [
    "Ġ t", "h e", "Ġt he", "e n", "n d", "Ġ he", "a r", "ar t", "Ġhe art", "l e", "f t", "le ft",
    "Ġ left", "a l", "Ġ Ġ", "Ċ Ċ",
]  # fmt: skip
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
  fingerprint = codes_fingerprint = "fake"

  def encode(self, pixels):
    n, size = pixels.shape[:2]
    step = size // 4
    means = pixels.reshape(n, 4, step, 4, step).mean((2, 4))
    return np.clip((means + 1) * 16, 0, 31).astype(np.int32)


def make_picture(number, size):
  return np.random.default_rng(number).integers(0, 256, (size, size), np.uint8)


def make_row(number):
  """A generated study of a picture, a report and labels."""
  rng = np.random.default_rng([number, 1])
  report = " ".join(rng.choice(_WORDS, rng.integers(3, 20)))
  return source.Row(
      study_id=f"s{number}",
      patient_id=f"p{number}",
      split=("train", "train", "val", "train", "test")[number % 5],
      where=f"row {number}",
      pictures=(
          source.Picture("frontal", f"{number}.png", functools.partial(make_picture, number)),
      ),
      report=source.given_sections(findings=report),
      labels=rng.integers(-2, 2, 14).astype(np.int8),
  )


def make_source(number=50, changes=None):
  """`number` rows, a fifth of them validation and a fifth test; `changes` by number of the row."""
  rows = [dataclasses.replace(make_row(i), **(changes or {}).get(i, {})) for i in range(number)]
  return source.gather({"source": "fake", "number": number}, rows, merge=False)


@pytest.fixture(scope="session")
def image_tokenizer():
  return FakeImageTokenizer()


@pytest.fixture(scope="session")
def fake_source():
  return make_source


@pytest.fixture(scope="session")
def studies_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("records") / "studies"
  write_studies(make_source(), folder, LoadOptions(SIZE), WriteOptions())
  return folder


@pytest.fixture(scope="session")
def text_tokenizer(studies_dir, tmp_path_factory):
  reports = studies.load_studies(studies_dir, "train").reports
  return text.train_sentencepiece(reports, 300, tmp_path_factory.mktemp("sp") / "sp.model")


@pytest.fixture(scope="session")
def bpe_dir(tmp_path_factory):
  """vocab.json and merges.txt as GPT-2 has them, with 16 merges: 273 tokens."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  tokens = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
  tokens += [merge.replace(" ", "") for merge in _MERGES]
  folder = tmp_path_factory.mktemp("bpe")
  ids = {token: i for i, token in enumerate([*tokens, "<|endoftext|>"])}
  (folder / "vocab.json").write_text(json.dumps(ids))
  (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES, ""]), encoding="utf-8")
  return folder


def make_random_params(abstract, std):
  """Parameters drawn by NumPy, which spares compiling their initialisation; `std` of a kernel."""
  rng = np.random.default_rng(1234)

  def draw(path, leaf):
    if path[-1].key in ("scale", "bias"):
      return jnp.full(leaf.shape, float(path[-1].key == "scale"), leaf.dtype)
    return jnp.asarray(std(leaf) * rng.normal(size=leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, abstract)


@pytest.fixture(scope="session")
def random_params():
  return make_random_params


@pytest.fixture(scope="session")
def model_dir(random_params, tmp_path_factory):
  """A model with its tokenizers, as `convert` leaves one; tiny, random, 4 x 4 codes."""
  folder = tmp_path_factory.mktemp("model") / "model"
  network = vqgan.VQGANConfig(
      resolution=SIZE, in_channels=1, width=8, channel_multipliers=(1, 2, 2), num_res_blocks=1,
      z_channels=8, embed_dim=8, num_codes=32, num_groups=4,
  )  # fmt: skip
  params = random_params(
      vqgan.abstract_params(network), lambda leaf: np.prod(leaf.shape[:-1]) ** -0.5
  )
  image_tokenizer = ImageTokenizer(network, params)
  image_tokenizer.save(folder / "image_tokenizer")
  text_tokenizer = text.train_sentencepiece(
      ["the heart is large", "the lungs are clear"], 290, folder / "text_tokenizer.model"
  )
  vocabulary = Vocabulary.sentencepiece(text_tokenizer.vocab_size, network.num_codes)
  config = TransformerConfig(
      vocab_size=vocabulary.size, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4
  )
  params = random_params(abstract_params(config), lambda leaf: 0.3)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / "checkpoints" / "7" / "params", params)
  card = {
      "vocabulary": vocabulary.to_dict(),
      "image_tokenizer": image_tokenizer.fingerprint,
      "text_tokenizer": text_tokenizer.fingerprint,
  }
  job = {"train": {"model": config_lib.to_dict(config)}, "tokens": card}
  (folder / "job.json").write_text(json.dumps(job))
  return folder


@pytest.fixture(scope="session")
def tokens_dir(studies_dir, image_tokenizer, text_tokenizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp("records") / "tokens"
  vocabulary = Vocabulary.sentencepiece(text_tokenizer.vocab_size, image_tokenizer.num_codes)
  write_tokens(studies_dir, image_tokenizer, text_tokenizer, vocabulary, folder)
  return folder
