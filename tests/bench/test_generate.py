"""The benchmark runs and prints what it says it prints; its numbers are not judged here."""

import dataclasses
import re
import sys

import pytest

from chexmix_jax.bench import __main__ as bench
from chexmix_jax.bench import generate
from chexmix_jax.errors import UserError


@pytest.fixture
def tiny(monkeypatch):
  small = dataclasses.replace(generate.SMALL, num_layers=1, width=32, num_heads=2, mlp_dim=64,
                              rotary_dim=6)  # fmt: skip
  monkeypatch.setattr(generate, "SMALL", small)
  monkeypatch.setattr(generate, "BATCH", 2)
  monkeypatch.setattr(generate, "PROMPT", 12)
  monkeypatch.setattr(generate, "NEW", 4)


def test_prints_tokens_per_second_and_what_they_are_made_of(tiny, capsys):
  bench.main(["generate", "--rounds=2"])
  first, line = capsys.readouterr().out.splitlines()
  assert first.startswith("1 layers, width 32, 2 heads, batch 2, prompt 12, 4 new tokens")
  assert re.fullmatch(
      r"chexmix_jax +[\d,]+ tokens/s: first token [\d.]+ s, then -?[\d.]+ ms a step", line
  )


def test_hugging_face_writes_the_same_ids(tiny, capsys):
  pytest.importorskip("transformers", reason="transformers is not installed")
  pytest.importorskip("torch", reason="torch is not installed")
  bench.main(["generate", "--rounds=2", "--against=transformers"])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 6
  for name, line in zip(("transformers", "no cache"), lines[4:], strict=True):
    assert line.startswith(f"speed of chexmix_jax / {name}: ")
    assert line.endswith("; 100.0% of the ids are the same")


def test_against_transformers_without_it_says_what_to_install(tiny, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(UserError, match="needs torch; pip install torch=="):
    bench.main(["generate", "--against=transformers"])
