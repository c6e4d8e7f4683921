"""Mappings to dataclasses, strictly."""

import dataclasses
from typing import Literal

import pytest

from chexmix_jax import config
from chexmix_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float
  kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner
  sizes: tuple[int, ...] = (1,)
  many: tuple[Inner, ...] = ()
  limit: int | None = None
  flag: bool = False
  name: str = ""


def test_nested_mappings_become_nested_dataclasses():
  values = {"inner": {"rate": 1, "kind": "b"}, "sizes": [2, 3], "many": [{"rate": 0.5}], "limit": 4}
  built = config.build(Outer, values)
  assert built == Outer(Inner(1.0, "b"), (2, 3), (Inner(0.5),), 4)
  assert isinstance(built.inner.rate, float) and isinstance(built.sizes, tuple)
  assert config.build(Outer, {"inner": Inner(2.0)}) == Outer(Inner(2.0))
  assert config.build(Outer, {"inner": {"rate": 1.0}, "limit": None}).limit is None


def test_to_dict_and_back_is_the_same():
  built = Outer(Inner(0.25, "b"), (5, 6), (Inner(1.0),), 3, True, "x")
  assert config.build(Outer, config.to_dict(built)) == built


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iner": {}}, r"job\.iner is not a setting; did you mean 'inner'\?"),
        ({"zzz": 1}, r"job\.zzz is not a setting; use one of inner, sizes, .*name\."),
        ({}, r"job\.inner is missing; give it a value\."),
        ({"inner": {}}, r"job\.inner\.rate is missing"),
        ({"inner": {"rate": 1, "knd": "a"}}, r"job\.inner\.knd .*'kind'"),
        ({"inner": 3}, r"job\.inner must be a group of settings, not 3\."),
        ({"inner": {"rate": "x"}}, r"job\.inner\.rate='x' must be of type float\."),
        ({"inner": {"rate": True}}, r"job\.inner\.rate=True must be of type float\."),
        ({"inner": {"rate": 1, "kind": "c"}}, r"job\.inner\.kind='c' must be one of 'a', 'b'\."),
        ({"inner": {"rate": 1}, "sizes": "12"}, r"job\.sizes must be a list, not '12'\."),
        ({"inner": {"rate": 1}, "sizes": 1}, r"job\.sizes must be a list"),
        ({"inner": {"rate": 1}, "sizes": [1, 2.5]}, r"job\.sizes\[1\]=2\.5 must be of type int\."),
        ({"inner": {"rate": 1}, "limit": True}, r"job\.limit=True must be of type int\."),
        ({"inner": {"rate": 1}, "limit": 1.0}, r"job\.limit=1\.0 must be of type int\."),
        ({"inner": {"rate": 1}, "flag": 1}, r"job\.flag=1 must be of type bool\."),
        ({"inner": {"rate": 1}, "name": None}, r"job\.name=None must be of type str\."),
    ],
)
def test_a_key_that_does_not_fit_is_named_with_its_path(values, message):
  with pytest.raises(UserError, match=message):
    config.build(Outer, values, "job")


def test_what_differs_between_two_jobs_is_named():
  ours = {"train": {"steps": 3, "model": {"widths": [1, 2], "bias": None}}, "seed": 1}
  theirs = {"train": {"steps": 3, "model": {"widths": [1, 3]}, "mesh": 2}, "seed": 1}
  assert config.differing(ours, ours) == []
  assert config.differing(ours, theirs) == ["train.mesh", "train.model.widths"]
