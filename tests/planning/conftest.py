"""A small training on four TPUs that are not there."""

import os
import pathlib

import pytest

from chexmix_jax.data.pipeline import DataConfig
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.parallel.mesh import MeshConfig
from chexmix_jax.plan import ENVIRONMENT
from chexmix_jax.planning.compile import compile_step
from chexmix_jax.planning.target import find_target
from chexmix_jax.training.setup import TrainConfig

os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="session")
def tpus():
  pytest.importorskip("libtpu", reason="needs pip install 'chexmix-jax[plan]'")
  return find_target("v5e:2x2")


@pytest.fixture(scope="session")
def small():
  model = TransformerConfig(
      vocab_size=1024, num_layers=3, width=256, num_heads=2, mlp_dim=1024, rotary_dim=32,
      dropout=0.0, dtype="bfloat16", remat="full",
  )  # fmt: skip
  data = DataConfig("", context=256, batch_size=16)
  return TrainConfig(model, data, mesh=MeshConfig(1, 4, 1))


@pytest.fixture(scope="session")
def compiled_small(small, tpus):
  return compile_step(small, tpus.devices)


@pytest.fixture(scope="session")
def config_file(tmp_path_factory) -> pathlib.Path:
  """The same for the command line."""
  file = tmp_path_factory.mktemp("plan") / "small.py"
  file.write_text("""
import ml_collections

def get_config():
  return ml_collections.ConfigDict({
      "model": {
          "vocab_size": 1024, "num_layers": 3, "width": 256, "num_heads": 2, "mlp_dim": 1024,
          "rotary_dim": 32, "dropout": 0.0, "dtype": "bfloat16", "remat": "full",
      },
      "data": {"tokens": "", "context": 256, "batch_size": 16},
      "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
  })
""")
  return file
