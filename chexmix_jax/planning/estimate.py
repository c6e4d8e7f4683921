"""What a training step needs by shape arithmetic alone: for GPUs, and to rank what to compile.

Bytes of a device, of L layers, width D, MLP F, and n tokens of a micro-batch on it:

    state      parameters and optimizer, as their shardings divide them
    gradients  float32, as the parameters; twice with accumulation
    kept       n·L·(what remat keeps of a layer), in the type of the computation
    working    one layer's activations and gradients, 12·D + 4·F a token; two layers' kernels
    output     the kernel of the output layer, its gradient three times in float32, and a chunk of
               logits; on several devices the embeddings and their gradient beside
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from chexmix_jax.models import flops
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.parallel.hardware import Chip
from chexmix_jax.parallel.mesh import AXES
from chexmix_jax.planning.roofline import Roofline
from chexmix_jax.training.loss import CHUNK_LOGITS
from chexmix_jax.training.optimizer import OptimizerConfig, make_optimizer
from chexmix_jax.training.setup import TrainConfig
from chexmix_jax.training.step import abstract_state


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a device."""

  parameters: float
  optimizer: float
  activations: float

  @property
  def total(self) -> float:
    return self.parameters + self.optimizer + self.activations


def state_bytes(config: TrainConfig, sizes: tuple[int, int, int]) -> tuple[float, float]:
  """Parameters, and the rest of the training state, of one device, exactly."""
  trained, frozen, rest = _state_bytes(config, sizes)
  return trained + frozen, rest


def _state_bytes(
    config: TrainConfig, sizes: tuple[int, int, int]
) -> tuple[float, float, float]:
  """Of one device: trained parameters, frozen ones, and the rest."""
  # How it is computed changes nothing, and it takes a second to trace.
  model = dataclasses.replace(config.model, remat="none", scan_layers=True)
  return _traced_state_bytes(model, config.optimizer, sizes)


@functools.cache
def _traced_state_bytes(
    model: TransformerConfig, optimizer: OptimizerConfig, sizes: tuple[int, int, int]
) -> tuple[float, float, float]:
  mesh = jax.sharding.AbstractMesh(sizes, AXES)
  state = abstract_state(model, make_optimizer(optimizer, steps=1), mesh)

  def size(leaf):
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

  trained, frozen, everything = (
      sum(map(size, jax.tree.leaves(tree))) for tree in (state.params, state.frozen, state)
  )
  return trained, frozen, everything - trained - frozen


def estimate_memory(config: TrainConfig, sizes: tuple[int, int, int]) -> Memory:
  """Of a training step on a mesh of data x fsdp x tensor devices."""
  model, (data, fsdp, tensor) = config.model, sizes
  trained, frozen, optimizer = _state_bytes(config, sizes)
  tokens = tokens_of_a_device(config, sizes)
  item = jnp.dtype(model.dtype).itemsize
  layer = _layer_kernels(model)
  gradients = trained * (2 if config.accumulation > 1 else 1)
  kept = tokens * item * model.num_layers * _kept(model, tensor)
  working = tokens * item * (12 * model.width + 4 * model.mlp_dim / tensor)
  if fsdp > 1 or item < 4:
    working += 2 * layer * item / tensor
  head = model.width * model.vocab_size / tensor
  chunk = min(CHUNK_LOGITS, tokens * model.vocab_size / tensor)
  # The gradients of both tables come whole before they are shared out.
  output = head * (item + 12) + chunk * (4 + item)
  tables = 2 * head * item if fsdp > 1 or data > 1 else 0
  return Memory(trained + frozen, optimizer, gradients + kept + tables + max(working, output))


def estimate_time(config: TrainConfig, sizes: tuple[int, int, int], chip: Chip) -> Roofline:
  """Of a training step: what the formula counts and what remat adds; the state once through memory.

  Every layer's kernels are gathered for each pass of each micro-batch, and their gradients
  scattered; tensor parallelism sums the activations of each layer four times.
  """
  model, (data, fsdp, tensor) = config.model, sizes
  count = data * fsdp * tensor
  tokens = config.data.batch_size * config.data.context / count
  work = tokens * flops.train_flops_per_token(model, config.data.context)
  again = {"none": 0.0, "projections": 0.0, "attention": 7 / 12, "full": 7 / 12}[model.remat]
  layers = model.num_layers * _layer_kernels(model)
  work += again * 2 * layers * tokens
  if model.remat == "full":
    work += 2 * model.num_layers * model.width * config.data.context * tokens
  item = jnp.dtype(model.dtype).itemsize
  parameters, optimizer = state_bytes(config, sizes)
  passes = 2 if model.remat == "none" else 3
  kernels = layers / tensor * item * passes * config.accumulation
  moved = 2 * (parameters + optimizer) + 2 * kernels
  moved += tokens * model.num_layers * item * (30 * model.width + 8 * model.mlp_dim / tensor)
  sent = kernels * (fsdp - 1) / fsdp
  if data > 1:
    sent += 2 * layers / tensor / fsdp * 4
  if tensor > 1:
    sent += 4 * 2 * tokens * tensor * model.width * item * model.num_layers * (tensor - 1) / tensor
  bandwidth = chip.peer_bandwidth or 2 * chip.ici_bandwidth * chip.ici_dims
  network = 0.0
  if chip.host_devices and count > chip.host_devices > 1 and not chip.ici_dims:
    network = sent * chip.host_devices / chip.nic_bandwidth
  links = sent / bandwidth if count > 1 else 0.0
  return Roofline(work / chip.flops, moved / chip.hbm_bandwidth, links, network)


def tokens_of_a_device(config: TrainConfig, sizes: tuple[int, int, int]) -> float:
  """Of a micro-batch."""
  rows = config.data.batch_size / (sizes[0] * sizes[1] * config.accumulation)
  return rows * config.data.context


def _layer_kernels(model: TransformerConfig) -> int:
  """Numbers in a layer's kernels."""
  return 4 * model.width**2 + 2 * model.width * model.mlp_dim


def _kept(model: TransformerConfig, tensor: int) -> float:
  """Numbers a token that a layer keeps for the backward pass."""
  width, mlp = model.width, model.mlp_dim / tensor
  return {
      "full": width,
      "attention": width + width / tensor,
      "projections": width + 4 * width / tensor + mlp,
      "none": 4 * width + 8 * width / tensor + 4 * mlp,
  }[model.remat]
