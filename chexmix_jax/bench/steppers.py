"""The training step to be timed: ours, and the same model's in PyTorch."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import numpy as np

from chexmix_jax.bench.process import peak_memory
from chexmix_jax.conversion.phi import config_to_torch
from chexmix_jax.errors import UserError
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.parallel.sharding import named_sharding
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.optimizer import make_optimizer
from chexmix_jax.training.setup import TrainConfig, check_batch
from chexmix_jax.training.step import abstract_state, jit_init_state, jit_train_step

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a stepper runs on, and what it took so far.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    device_kind: as jax or PyTorch has it.
    num_devices: in the mesh.
    versions: of the libraries.
    start: how long it took to get going, in words.
    peak_memory: bytes, of the fullest device; of a CPU the whole process's.
  """

  platform: str
  device_kind: str
  num_devices: int
  versions: str
  start: str
  peak_memory: int


def platform_and_devices(config: MeshConfig) -> tuple[str, int]:
  """The platform of a mesh and its number of devices."""
  mesh = make_mesh(config)
  return mesh.devices.flat[0].platform, mesh.size


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
  """Says what to change where the memory of the device does not do."""
  try:
    yield
  except RuntimeError as error:  # What jax and PyTorch raise are kinds of it.
    if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error):
      raise
    raise UserError(
        "The step does not fit into the device's memory; lower data.batch_size, raise accumulation"
        " or set model.remat."
    ) from error


def _timed(step: Callable[[], object], number: int) -> list[float]:
  seconds = []
  with _fitting():
    for _ in range(number):
      start = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - start)
  return seconds


class JaxStepper:
  """The step that chexmix_jax.train does, on the config's mesh."""

  def __init__(self, config: TrainConfig, batch: Batch):
    self._mesh = make_mesh(config.mesh)
    check_batch(config, self._mesh)
    half = config.model.vocab_size // 2
    # Of it, the step only asks which ids are codes.
    vocabulary = Vocabulary.sentencepiece(num_text=half, num_codes=half - 5)
    optimizer = make_optimizer(config.optimizer, config.steps)
    with jax.set_mesh(self._mesh), _fitting():
      abstract = abstract_state(config.model, optimizer, self._mesh)
      init = jit_init_state(config.model, optimizer, abstract)
      self._state = init(jax.random.key(config.seed))
      sharding = named_sharding(self._mesh, ("batch", None))
      self._batch = {name: jax.device_put(value, sharding) for name, value in batch.items()}
      step = jit_train_step(
          config.model, vocabulary, optimizer, abstract, self._mesh, config.accumulation
      )
      start = time.perf_counter()
      self._step = cast(Any, step).lower(self._state, self._batch).compile()
      self._compiled_in = time.perf_counter() - start

  def _run(self) -> None:
    with jax.set_mesh(self._mesh):
      self._state, metrics = self._step(self._state, self._batch)
    jax.block_until_ready(metrics)

  def steps(self, number: int) -> list[float]:
    """Seconds of each of so many steps."""
    return _timed(self._run, number)

  def trace(self, folder: str, number: int) -> None:
    """Writes a trace of so many steps."""
    with jax.profiler.trace(folder, create_perfetto_trace=True):
      _timed(self._run, number)

  def facts(self) -> Facts:
    device = self._mesh.devices.flat[0]
    has_cache = "JAX_COMPILATION_CACHE_DIR" in os.environ
    return Facts(
        platform=device.platform,
        device_kind=device.device_kind,
        num_devices=self._mesh.size,
        versions=f"jax {jax.__version__}",
        start=f"compiled in {self._compiled_in:.1f} s{' (or cached)' * has_cache}",
        peak_memory=self._peak_memory(),
    )

  def _peak_memory(self) -> int:
    devices = self._mesh.local_devices
    if devices[0].platform == "cpu":
      return peak_memory()
    stats = [device.memory_stats() for device in devices]
    if all(stats):
      return max(one["peak_bytes_in_use"] for one in stats)
    sizes = self._step.memory_analysis()
    # Donated arguments are outputs too.
    return (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )  # fmt: skip


class TorchStepper:
  """The same with Hugging Face's PhiForCausalLM as one would train it in PyTorch, on one device.

  SDPA, autocast to bfloat16 where the config computes in it, AdamW, clipping, gradient
  checkpointing where the config recomputes; on a GPU, torch.compile and the fused AdamW too.
  Positions tell Hugging Face of packed documents, whose attention it keeps apart.
  """

  def __init__(self, config: TrainConfig, batch: Batch, platform: str):
    import torch
    import transformers

    if platform == "gpu" and not torch.cuda.is_available():
      raise UserError("PyTorch sees no GPU where jax does; install torch built for CUDA.")
    self._torch, self._config, self._is_gpu = torch, config, platform == "gpu"
    self._device = torch.device("cuda" if self._is_gpu else "cpu")
    self._versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    torch.manual_seed(config.seed)
    if self._is_gpu:
      torch.set_float32_matmul_precision("high")  # As XLA's.
    model_config = transformers.AutoConfig.for_model(
        **config_to_torch(config.model, eot=0, context=config.data.context)
    )
    with _fitting():
      with self._device:
        model = transformers.AutoModelForCausalLM.from_config(
            model_config, attn_implementation="sdpa", dtype=torch.float32
        )
      model.train()
      if config.model.remat != "none":
        model.activation_checkpointing_enable()
      self._model = torch.compile(model) if self._is_gpu else model
      settings = config.optimizer
      self._optimizer = torch.optim.AdamW(
          model.parameters(), lr=settings.learning_rate, betas=(settings.b1, settings.b2),
          eps=settings.eps, weight_decay=settings.weight_decay, fused=self._is_gpu,
      )  # fmt: skip
      self._micros = [
          {name: torch.as_tensor(part).to(self._device) for name, part in micro.items()}
          for micro in _micro_batches(batch, config.accumulation)
      ]
    self._weight = float(batch["weights"].sum())
    self._has_packed = bool((batch["segment_ids"] != 1).any())
    self._start = ""

  def loss(self) -> float:
    """The weighted mean loss of the batch (nats); adds its gradient to the parameters'."""
    torch, config = self._torch, self._config
    is_half = config.model.dtype == "bfloat16"
    total = 0.0
    for micro in self._micros:
      with torch.autocast(self._device.type, torch.bfloat16, enabled=is_half):
        # Without positions SDPA needs no mask and takes its fastest way.
        positions = micro["positions"] if self._has_packed else None
        logits = self._model(micro["inputs"], position_ids=positions, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), micro["targets"].flatten(), reduction="none"
        )
        loss = (losses * micro["weights"].flatten()).sum() / self._weight
      loss.backward()
      total += loss.detach()
    return float(total)

  def _run(self) -> None:
    self._optimizer.zero_grad(set_to_none=True)
    self.loss()
    self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip_norm)
    self._optimizer.step()
    if self._is_gpu:
      self._torch.cuda.synchronize()

  def steps(self, number: int) -> list[float]:
    """Seconds of each of so many steps."""
    seconds = _timed(self._run, number)
    self._start = self._start or f"first step {seconds[0]:.1f} s"
    return seconds

  def facts(self) -> Facts:
    cuda = self._torch.cuda
    return Facts(
        platform="gpu" if self._is_gpu else "cpu",
        device_kind=cuda.get_device_name() if self._is_gpu else "cpu",
        num_devices=1,
        versions=self._versions,
        start=self._start,
        peak_memory=cuda.max_memory_allocated() if self._is_gpu else peak_memory(),
    )


def _micro_batches(batch: Batch, number: int) -> list[Batch]:
  """As chexmix_jax.training.step divides them; integers as PyTorch wants them."""
  return [
      {
          name: value[i::number].astype(np.float32 if name == "weights" else np.int64)
          for name, value in batch.items()
      }
      for i in range(number)
  ]
