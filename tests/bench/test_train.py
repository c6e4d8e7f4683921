"""The benchmark runs and prints what it says it prints; its numbers are not judged here."""

import dataclasses
import re
import sys

import pytest

from chexmix_jax.bench import __main__ as bench
from chexmix_jax.bench import train
from chexmix_jax.errors import UserError


@pytest.fixture
def tiny(monkeypatch):
  small = dataclasses.replace(train.SMALL, num_layers=1, width=32, num_heads=2, mlp_dim=64,
                              rotary_dim=6)  # fmt: skip
  monkeypatch.setattr(train, "SMALL", small)
  monkeypatch.setattr(train, "BATCH", 8)
  monkeypatch.setattr(train, "LENGTH", 16)


def test_prints_seconds_and_tokens_per_second(tiny, capsys):
  bench.main(["train", "--steps=2"])
  first, line = capsys.readouterr().out.splitlines()
  assert first.startswith("1 layers, width 32, 2 heads, batch 8, sequence 16, vocabulary 8192")
  found = re.fullmatch(r"chexmix_jax +([\d.]+) s a step +([\d,]+) tokens/s", line)
  seconds, rate = float(found[1]), float(found[2].replace(",", ""))
  assert rate == pytest.approx(8 * 16 / seconds, rel=0.2)


def test_against_torch_without_torch_says_what_to_install(tiny, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(UserError, match="needs torch; pip install torch==2"):
    bench.main(["train", "--against=torch"])


def test_an_unknown_benchmark_is_refused():
  with pytest.raises(UserError, match="Name a benchmark"):
    bench.main(["trian"])
