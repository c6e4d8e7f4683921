"""A small set of studies with findings to see and to read, its tokens, and a tiny random model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax import labels as labels_lib
from chexmix_jax.data import images, studies
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.sources import source
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.evaluation.evaluator import Context
from chexmix_jax.metrics.bootstrap import Resamples
from chexmix_jax.models import vqgan
from chexmix_jax.models.transformer import TransformerConfig, abstract_params
from chexmix_jax.tokenizers import text
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary

SIZE = 16
NUM_STUDIES = 150
# What is drawn (a square of the picture, made brighter) and said of each finding.
FINDINGS = {
    "Cardiomegaly": ((8, 14, 5, 11), "The heart is enlarged."),
    "Edema": ((2, 8, 1, 15), "There is pulmonary edema."),
    "Pleural Effusion": ((11, 16, 0, 6), "There is a right pleural effusion."),
    "Pneumothorax": ((0, 5, 10, 16), "There is a left pneumothorax."),
}
_NOTHING = ("The lungs are clear.", "No acute disease.")


def make_content(number):
  """Each finding is there in every second study, and hedged in some of those."""
  rng = np.random.default_rng(number)
  image = rng.normal(90, 20, (SIZE, SIZE))
  labels = np.full(len(labels_lib.CHEXPERT_14), labels_lib.NEGATIVE, np.int8)
  sentences = []
  for name, ((top, bottom, left, right), sentence) in FINDINGS.items():
    if rng.random() < 0.5:
      image[top:bottom, left:right] += 110
      hedged = rng.random() < 0.1
      sentences.append(sentence.replace(" is ", " may be ", 1) if hedged else sentence)
      labels[labels_lib.INDEX[name]] = labels_lib.UNCERTAIN if hedged else labels_lib.POSITIVE
  if not sentences:
    sentences = [_NOTHING[rng.integers(2)]]
    labels[labels_lib.INDEX["No Finding"]] = labels_lib.POSITIVE
  return np.clip(image, 0, 255).astype(np.uint8), " ".join(rng.permutation(sentences)), labels


def make_picture(number, size):
  return make_content(number)[0]


def _values_of(result):
  resamples = Resamples(tuple(result.patient_ids))
  return result.values | {name: resamples.value(f) for name, f in result.figures.items()}


@pytest.fixture(scope="session")
def values_of():
  """A function of a Result: all values, those of the figures of all studies among them."""
  return _values_of


@pytest.fixture(scope="session")
def studies_dir(tmp_path_factory):
  """90 train, 30 val and 30 test studies, two a patient, at 16 pixels."""
  rows = []
  for i in range(NUM_STUDIES):
    split = ("train", "train", "val", "train", "test")[i // 2 % 5]
    _, report, labels = make_content(i)
    picture = source.Picture("frontal", f"{i}.png", functools.partial(make_picture, i))
    rows.append(
        source.Row(
            f"s{i}", f"p{i // 2}", split, f"row {i}", (picture,),
            source.given_sections(findings=report), labels,
        )
    )  # fmt: skip
  folder = tmp_path_factory.mktemp("evaluation") / "studies"
  written = source.gather({"source": "fake"}, rows, merge=False)
  write_studies(written, folder, LoadOptions(SIZE), WriteOptions())
  return folder


@pytest.fixture(scope="session")
def image_tokenizer(studies_dir, random_params):
  """A random VQGAN of 4 x 4 codes whose codebook is drawn from what its encoder says."""
  config = vqgan.VQGANConfig(
      resolution=SIZE, in_channels=1, width=8, channel_multipliers=(1, 2, 2), num_res_blocks=1,
      z_channels=8, embed_dim=8, num_codes=32, num_groups=4,
  )  # fmt: skip
  params = random_params(
      vqgan.abstract_params(config), lambda leaf: np.prod(leaf.shape[:-1]) ** -0.5
  )
  pictures = images.to_float(studies.load_studies(studies_dir, "train").images)[..., None]
  encode = jax.jit(lambda params, x: vqgan.bind(config, params).encode(x))
  features = encode(params, pictures).reshape(-1, config.embed_dim)
  take = np.random.default_rng(0).choice(len(features), config.num_codes, replace=False)
  return ImageTokenizer(config, {**params, "codebook": jnp.asarray(features)[take]})


@pytest.fixture(scope="session")
def text_tokenizer_path(studies_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp("evaluation") / "sp.model"
  text.train_sentencepiece(studies.load_studies(studies_dir, "train").reports, 310, path)
  return path


@pytest.fixture(scope="session")
def text_tokenizer(text_tokenizer_path):
  return text.SentencePieceTokenizer.load(text_tokenizer_path)


@pytest.fixture(scope="session")
def vocabulary(image_tokenizer, text_tokenizer):
  return Vocabulary.sentencepiece(text_tokenizer.vocab_size, image_tokenizer.num_codes)


@pytest.fixture(scope="session")
def tokens_dir(studies_dir, image_tokenizer, text_tokenizer, vocabulary, tmp_path_factory):
  folder = tmp_path_factory.mktemp("evaluation") / "tokens"
  write_tokens(studies_dir, image_tokenizer, text_tokenizer, vocabulary, folder)
  return folder


@pytest.fixture(scope="session")
def model_config(vocabulary):
  return TransformerConfig(
      vocab_size=vocabulary.size, num_layers=2, width=32, num_heads=4, mlp_dim=64, rotary_dim=4
  )


@pytest.fixture(scope="session")
def params(model_config, random_params):
  """Random parameters, larger than fresh ones, so that every token matters."""
  return random_params(abstract_params(model_config), lambda leaf: 0.3)


@pytest.fixture(scope="session")
def context(
    model_config, vocabulary, studies_dir, tokens_dir, image_tokenizer, text_tokenizer
):
  return Context(
      model=model_config,
      vocabulary=vocabulary,
      studies=studies_dir,
      tokens=tokens_dir,
      image_tokenizer=image_tokenizer,
      text_tokenizer=text_tokenizer,
  )
