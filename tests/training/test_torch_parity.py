"""The training step beside PyTorch's, on fresh random weights: gradients, ten steps of AdamW."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chexmix_jax.conversion.phi import params_from_torch, params_to_torch
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.step import TrainState, cross_entropy_sums, train_step

VOCABULARY = Vocabulary.sentencepiece(50, 64)
CONFIG = TransformerConfig(
    vocab_size=VOCABULARY.size, num_layers=3, width=64, num_heads=4, mlp_dim=256, rotary_dim=6,
    dropout=0.0, scan_layers=False,
)  # fmt: skip
ROWS, LENGTH, STEPS = 4, 48, 10


@pytest.fixture
def torch_model():
  """A PhiForCausalLM of CONFIG's shape with random weights, biases included."""
  torch = pytest.importorskip("torch", reason="torch is not installed")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  torch.manual_seed(int(np.random.default_rng().integers(1 << 30)))
  model = transformers.PhiForCausalLM(
      transformers.PhiConfig(
          vocab_size=CONFIG.vocab_size, hidden_size=CONFIG.width, intermediate_size=CONFIG.mlp_dim,
          num_hidden_layers=CONFIG.num_layers, num_attention_heads=CONFIG.num_heads,
          partial_rotary_factor=0.4, resid_pdrop=0.0,
      )
  )  # fmt: skip
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.05)
  return model


def _params(model):
  tensors = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
  return jax.tree.map(jnp.asarray, params_from_torch(CONFIG, tensors))


def _batch(seed):
  tokens = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (ROWS, LENGTH + 1))
  return {
      "inputs": tokens[:, :-1].astype(np.int32),
      "targets": tokens[:, 1:].astype(np.int32),
      "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
      "segment_ids": np.ones((ROWS, LENGTH), np.int32),
      "weights": np.ones((ROWS, LENGTH), np.float32),
  }


def _torch_loss(model, batch):
  import torch

  inputs, targets = (torch.tensor(batch[key], dtype=torch.long) for key in ("inputs", "targets"))
  logits = model(inputs).logits
  return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_gradients_of_every_parameter(torch_model):
  batch = _batch(0)
  loss = functools.partial(cross_entropy_sums, CONFIG, VOCABULARY)
  gradient = jax.jit(jax.grad(lambda params: loss(params, batch, None)[0] / (ROWS * LENGTH)))
  ours = {n: read() for n, _, read in params_to_torch(CONFIG, gradient(_params(torch_model)))}
  _torch_loss(torch_model, batch).backward()
  theirs = {name: p.grad.numpy() for name, p in torch_model.named_parameters()}
  assert ours.keys() == theirs.keys()
  for name, expected in theirs.items():
    # A key's bias moves all logits of a query alike, which the softmax takes out again: its
    # gradient is zero but for rounding, so the error is measured against the layer's other biases.
    scale = np.abs(theirs[name.replace("k_proj.bias", "q_proj.bias")]).max()
    assert np.abs(ours[name] - expected).max() <= 1e-4 * scale, name


def test_ten_steps_of_adamw(torch_model):
  import torch

  params = _params(torch_model)
  adamw = torch.optim.AdamW(
      torch_model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
  )
  optimizer = optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(1e-3, 0.9, 0.95, 1e-8, weight_decay=0.1)
  )
  step = jax.jit(
      functools.partial(
          train_step, config=CONFIG, vocabulary=VOCABULARY, optimizer=optimizer, accumulation=1
      )
  )
  key = jax.random.key_data(jax.random.key(0))
  state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)
  ours, theirs = [], []
  for number in range(STEPS):
    batch = _batch(number)
    state, metrics = step(state, batch)
    ours.append(float(metrics["loss"]))
    adamw.zero_grad()
    loss = _torch_loss(torch_model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(torch_model.parameters(), 1.0)
    adamw.step()
    theirs.append(loss.item())
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
  assert ours[-1] != pytest.approx(ours[0], abs=1e-3)
