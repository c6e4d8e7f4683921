"""The benchmark runs and prints what it says it prints; its numbers are not judged here."""

import re

import pytest

from chexmix_jax.bench import __main__ as bench
from chexmix_jax.bench import data


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setattr(data, "SHAPE", (60, 50))
  monkeypatch.setattr(data, "STUDIES", 40)
  monkeypatch.setattr(data, "BATCH", 2)


def test_prints_images_and_tokens_per_second(tiny, capsys):
  bench.main(["data", "--size=16", "--rounds=2"])
  *pictures, batches = capsys.readouterr().out.splitlines()
  assert [line.split(",")[0] for line in pictures] == ["jpg", "png", "dcm"]
  for line in pictures:
    ours, plain, ratio = map(
        float,
        re.fullmatch(
            r"\w+, 50 x 60 to 16 pixels, one core: ([\d.]+) images/s, plain Pillow ([\d.]+),"
            r" ratio ([\d.]+)",
            line,
        ).groups(),
    )
    assert min(ours, plain, ratio) > 0
  found = re.search(r"([\d,]+) tokens/s, ([\d.]+)% filled; \d+ times", batches)
  assert int(found[1].replace(",", "")) > 0 and 50 < float(found[2]) <= 100
  assert "needs (23,452)" in batches
