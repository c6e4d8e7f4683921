"""The benchmark runs and prints what it says it prints; its numbers are not judged here."""

import contextlib
import dataclasses
import importlib.util
import re

import jax
import numpy as np
import pytest

from chexmix_jax import config as config_lib
from chexmix_jax.bench import __main__ as bench
from chexmix_jax.bench import steppers, train
from chexmix_jax.data.pipeline import DataConfig
from chexmix_jax.errors import UserError
from chexmix_jax.models import flops
from chexmix_jax.models.transformer import TransformerConfig
from chexmix_jax.parallel.hardware import CHIPS
from chexmix_jax.training.optimizer import OptimizerConfig
from chexmix_jax.training.setup import TrainConfig

_MODEL = TransformerConfig(
    vocab_size=128, num_layers=2, width=32, num_heads=2, mlp_dim=64, rotary_dim=6, dropout=0.0
)
_FACTS = steppers.Facts("gpu", "NVIDIA H200", 2, "jax 1.2.3", "compiled in 9.0 s", 3_210_000_000)


class Found(tuple):
  """What a process that looked for devices answers."""

  def call(self, function):
    return function(self)


@pytest.fixture
def tiny(monkeypatch):
  small = dataclasses.replace(train.SMALL, num_layers=1, width=32, num_heads=2, mlp_dim=64,
                              rotary_dim=6)  # fmt: skip
  monkeypatch.setattr(train, "SMALL", small)
  monkeypatch.setattr(train, "BATCH", 8)
  monkeypatch.setattr(train, "LENGTH", 16)


@pytest.fixture
def config_file(tmp_path):
  """Writes a training config of _MODEL with changes, and gives its option."""

  def write(**changes):
    config = TrainConfig(_MODEL, DataConfig("", 64, 16), **changes)
    file = tmp_path / "config.py"
    file.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"  return ml_collections.ConfigDict({config_lib.to_dict(config)!r})\n"
    )
    return f"--config={file}"

  return write


def test_prints_seconds_tokens_per_second_memory_and_compilation(tiny, capsys):
  bench.main(["train", "--steps=2"])
  first, _, machine, line, formula, no_mfu = capsys.readouterr().out.splitlines()
  assert first.startswith("1 layers, width 32, 2 heads, batch 8, sequence 16, vocabulary 8192")
  assert machine.startswith(f"{jax.device_count()} x cpu; jax {jax.__version__}, Python 3.")
  found = re.fullmatch(
      r"chexmix_jax +([\d.]+) s a step +([\d,]+) tokens/s; peak memory [\d.]+ GB;"
      r" compiled in [\d.]+ s( \(or cached\))?",
      line,
  )
  seconds, rate = float(found[1]), float(found[2].replace(",", ""))
  assert rate == pytest.approx(8 * 16 / seconds, rel=0.2)
  assert "x width 32 x 16 tokens of a document" in formula
  assert no_mfu.startswith("no MFU: ") and "'cpu'" in no_mfu


def test_a_config_gives_model_mesh_and_batch_and_a_trace_is_written(config_file, tmp_path, capsys):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  trace = tmp_path / "trace"
  bench.main([
      "train", "--steps=1", f"--trace={trace}", config_file(accumulation=2),
      "--config.data.batch_size=8", "--config.model.remat=full", "--config.mesh.tensor=2",
  ])  # fmt: skip
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("2 layers, width 32, 2 heads, batch 8, sequence 64, vocabulary 128")
  assert "remat=full" in lines[1] and "accumulation=2" in lines[1]
  assert lines[2].startswith("8 x cpu")
  assert f"xprof --logdir={trace}" in lines[-1]
  assert list(trace.rglob("*.xplane.pb")) and list(trace.rglob("perfetto_trace.json.gz"))


def test_a_vocabulary_of_zero_is_the_published_one(config_file):
  config, rest = train._load([config_file(), "--config.model.vocab_size=0", "--steps=3"])
  assert config.model.vocab_size == 58562
  assert rest == ["--steps=3"]


def test_a_batch_holds_packed_documents_of_a_picture_and_a_report():
  batch = train.make_batch(TrainConfig(_MODEL, DataConfig("", 4608, 6)))
  positions, segment_ids = batch["positions"], batch["segment_ids"]
  used = segment_ids > 0
  assert used.mean() > 0.9
  np.testing.assert_array_equal(batch["weights"], used)
  for row in range(6):
    lengths = np.bincount(segment_ids[row])[1:]
    assert len(lengths) > 2
    assert (lengths >= 1027 + 23).all() and (lengths <= 1027 + 175).all()
    expected = np.concatenate([np.arange(length) for length in lengths])
    np.testing.assert_array_equal(positions[row, : len(expected)], expected)
    assert not used[row, len(expected) :].any()
  np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
  assert batch["inputs"].max() < _MODEL.vocab_size


def test_a_context_shorter_than_a_picture_holds_one_document_a_row():
  batch = train.make_batch(TrainConfig(_MODEL, DataConfig("", 64, 2)))
  assert (batch["segment_ids"] == 1).all()
  np.testing.assert_array_equal(batch["positions"], np.tile(np.arange(64), (2, 1)))


def test_the_share_of_the_peak_and_the_ratio_follow_from_the_median_steps(capsys):
  config = TrainConfig(_MODEL, DataConfig("", 64, 4))
  batch = train.make_batch(config)
  ours = train._Timing([0.5, 0.004, 0.002], _FACTS)
  theirs = train._Timing([0.5, 0.008, 0.006], dataclasses.replace(_FACTS, num_devices=1))
  train._report(config, batch, {"chexmix_jax": ours, "torch": theirs})
  lines = capsys.readouterr().out.splitlines()
  assert lines[2].startswith("2 x NVIDIA H200; jax 1.2.3; jax 1.2.3, Python ")
  rate = 4 * 64 / 0.004 / 2
  share = flops.train_flops_per_token(_MODEL, 64) * rate / CHIPS["H200"].flops
  assert f"64,000 tokens/s, MFU {share:.1%}; peak memory 3.21 GB; compiled in 9.0 s" in lines[3]
  assert "989.5 TFLOP/s" in lines[6]
  assert lines[7] == "speed of chexmix_jax / torch: 2.00"


def test_a_step_that_does_not_fit_says_what_to_change():
  with pytest.raises(UserError, match=r"lower data\.batch_size"), steppers._fitting():
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
  with pytest.raises(RuntimeError, match="another"), steppers._fitting():
    raise RuntimeError("another")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=0"], "--steps must be 1 or more"),
        (["--against=torch"], r"needs torch; pip install torch==2"),
        (["--config=nowhere.py"], "nowhere.py is not a config file"),
    ],
)
def test_what_cannot_be_timed_is_refused(monkeypatch, arguments, message):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=message):
    bench.main(["train", *arguments])


def test_muon_has_no_counterpart_in_pytorch(monkeypatch, config_file):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  option = config_file(optimizer=OptimizerConfig(name="muon"))
  with pytest.raises(UserError, match=r"optimizer\.name=adamw"):
    bench.main(["train", option, "--against=torch"])


@pytest.mark.parametrize(("kind", "number"), [("tpu", 1), ("gpu", 2)])
def test_pytorch_is_compared_on_one_gpu_or_on_a_cpu(monkeypatch, kind, number):
  monkeypatch.setattr(train, "Process", lambda *_: contextlib.nullcontext(Found((kind, number))))
  with pytest.raises(UserError, match=r"--against=torch (runs on|compares)"):
    train._common_platform(TrainConfig(_MODEL, DataConfig("", 64, 4)))


def test_an_unknown_benchmark_is_refused():
  with pytest.raises(UserError, match="Name a benchmark"):
    bench.main(["trian"])
