"""The tiny model of the tests, and what goes into it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chexmix_jax
from chexmix_jax.models.transformer import Transformer, TransformerConfig
from chexmix_jax.tokenizers.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def model(model_dir):
  """Passes of 4 rows, so that some of the tests need two."""
  return chexmix_jax.load(model_dir, batch_size=4)


@pytest.fixture(scope="session")
def codes(model):
  """Codes of five pictures, int32 (5, 16)."""
  codes = np.random.default_rng(5).integers(0, model.vocabulary.num_codes, (5, 16))
  return codes.astype(np.int32)


@pytest.fixture(scope="session")
def forward(model):
  """Logits (T, V) of one row of up to 32 tokens, by a plain forward pass."""
  compiled = jax.jit(Transformer(model.config, model.params))

  def run(tokens):
    padded = np.pad(np.array(tokens), (0, 32 - len(tokens)))
    return np.array(compiled(jnp.asarray(padded[None])))[0, : len(tokens)]

  return run


@pytest.fixture(scope="session")
def golden_params(shared):
  """Shape, vocabulary and parameters of the small PyTorch model."""
  safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
  from chexmix_jax.conversion.phi import params_from_torch

  config = TransformerConfig(
      vocab_size=814, num_layers=4, width=64, num_heads=4, mlp_dim=256, rotary_dim=6
  )
  vocabulary = Vocabulary(
      size=814, num_text=295, image_offset=300, num_codes=512, boi=295, eoi=296, eot=256, mask=812,
      pad=813,
  )  # fmt: skip
  tensors = safetensors.load_file(shared / "parity/phi_small/model.safetensors")
  return config, vocabulary, jax.tree.map(jnp.asarray, params_from_torch(config, tensors))
