"""The benchmark runs and prints what it says it prints; its numbers are not judged here."""

import importlib.util
import re

import pytest

from chexmix_jax.bench import __main__ as bench
from chexmix_jax.errors import UserError

_TINY = ["generate", "--rounds=1", "--batch=2", "--prompt=12", "--new=4"]


def test_prints_tokens_per_second_and_what_they_are_made_of(capsys):
  bench.main(_TINY)
  first, line = capsys.readouterr().out.splitlines()
  assert first.startswith("6 layers, width 256, float32, batch 2, prompt 12, 4 new tokens")
  assert re.fullmatch(
      r"chexmix_jax +[\d,.]+ tokens/s: first token [\d.]+ s, then -?[\d.]+ ms a step; peak memory"
      r" [\d.]+ GB",
      line,
  )


def test_hugging_face_writes_the_same_ids(capsys):
  pytest.importorskip("transformers", reason="transformers is not installed")
  pytest.importorskip("torch", reason="torch is not installed")
  bench.main([*_TINY, "--against=transformers"])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 6
  for name, line in zip(("transformers", "no cache"), lines[4:], strict=True):
    assert line.startswith(f"speed of chexmix_jax / {name}: ")
    assert line.endswith("; 100.0% of the ids are the same")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--new=1"], "--new 2 or more"),
        (["--against=transformers", "--checkpoint=x"], "--checkpoint and --torch go together"),
        (["--checkpoint=not_there"], "not_there"),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments, message):
  with pytest.raises(UserError, match=message):
    bench.main(["generate", *arguments])


def test_against_transformers_without_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"needs torch; pip install torch=="):
    bench.main([*_TINY, "--against=transformers"])
