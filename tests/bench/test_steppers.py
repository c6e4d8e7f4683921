"""Ours starts as training does; PyTorch's does what ours does, on the same weights and batch."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from chexmix_jax.bench import steppers
from chexmix_jax.conversion.phi import params_from_torch
from chexmix_jax.data.pipeline import DataConfig
from chexmix_jax.errors import UserError
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.setup import TrainConfig
from chexmix_jax.training.step import cross_entropy_sums

_CONFIG = TrainConfig(
    TransformerConfig(
        vocab_size=128, num_layers=2, width=32, num_heads=2, mlp_dim=64, rotary_dim=6, dropout=0.0
    ),
    DataConfig("", 48, 4),
    accumulation=2,
)


@pytest.fixture
def batch():
  """Rows of two documents and padding, with some targets that carry no loss."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 128, (4, 49), np.int32)
  row = np.concatenate([np.full(25, 1), np.full(20, 2), np.zeros(3)]).astype(np.int32)
  positions = np.concatenate([np.arange(25), np.arange(20), np.zeros(3)]).astype(np.int32)
  weights = (rng.random((4, 48)) < 0.7) * (row > 0)
  return {
      "inputs": tokens[:, :-1],
      "targets": tokens[:, 1:],
      "positions": np.tile(positions, (4, 1)),
      "segment_ids": np.tile(row, (4, 1)),
      "weights": weights.astype(np.float32),
  }


def test_a_batch_that_the_micro_batches_cannot_share_out_is_refused(batch):
  config = dataclasses.replace(_CONFIG, accumulation=3)
  with pytest.raises(UserError, match=r"data\.batch_size=4 must be a positive multiple of"):
    steppers.JaxStepper(config, batch)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_pytorch_has_the_same_loss_and_gradient_of_packed_rows(batch, remat):
  pytest.importorskip("torch", reason="torch is not installed")
  pytest.importorskip("transformers", reason="transformers is not installed")
  config = dataclasses.replace(_CONFIG, model=dataclasses.replace(_CONFIG.model, remat=remat))
  stepper = steppers.TorchStepper(config, batch, "cpu")
  tensors = {name: value.detach().numpy() for name, value in stepper._model.state_dict().items()}
  params = params_from_torch(config.model, tensors)
  ours = jax.value_and_grad(
      functools.partial(cross_entropy_sums, config.model, Vocabulary.sentencepiece(60, 60)),
      has_aux=True,
  )
  (total, sums), gradient = jax.jit(ours)(params, batch, None)
  assert stepper.loss() == pytest.approx(float(total / sums["weight"]), rel=1e-5)
  theirs = params_from_torch(
      config.model, {name: value.grad.numpy() for name, value in stepper._model.named_parameters()}
  )
  for expected, found in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(found, expected / sums["weight"], atol=2e-6)


def test_pytorch_takes_steps_that_lower_its_loss(batch):
  pytest.importorskip("torch", reason="torch is not installed")
  pytest.importorskip("transformers", reason="transformers is not installed")
  stepper = steppers.TorchStepper(_CONFIG, batch, "cpu")
  before = stepper.loss()
  assert len(stepper.steps(5)) == 5
  assert stepper.loss() < before - 0.01
  facts = stepper.facts()
  assert (facts.platform, facts.num_devices) == ("cpu", 1)
  assert facts.start.startswith("first step ")
