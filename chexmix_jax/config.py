"""From nested mappings (ml_collections, JSON) to frozen dataclasses, strictly."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from chexmix_jax.errors import UserError

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
  """An instance of the dataclass `cls` from a mapping; nested dataclasses from nested mappings.

  Lists become tuples. Raises UserError for an unknown, missing or mistyped key, with its path.
  """
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for key in values:
    if key not in fields:
      near = difflib.get_close_matches(key, fields, n=1)
      hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(fields)}."
      raise UserError(f"{where}.{key} is not a setting; {hint}")
  hints = typing.get_type_hints(cls)
  kwargs = {}
  for name, field in fields.items():
    if name in values:
      kwargs[name] = _convert(hints[name], values[name], f"{where}.{name}")
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise UserError(f"{where}.{name} is missing; give it a value.")
  return cls(**kwargs)


def to_dict(value: Any) -> dict[str, Any]:
  """The JSON-ready nested dict of a dataclass instance."""
  return dataclasses.asdict(value)


def differing(ours: Any, theirs: Any) -> list[str]:
  """Keys, joined by dots, under which two nested dicts do not hold the same."""
  ours, theirs = _flatten(ours), _flatten(theirs)
  return sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
      name: value
      for key, child in tree.items()
      for name, value in _flatten(child, f"{prefix}.{key}" if prefix else key).items()
  }


def check_at_least_one(settings: Any, names: Iterable[str], of: str) -> None:
  """Raises UserError for a setting among `names` that is below 1; `of` says whose it is."""
  for name in names:
    if getattr(settings, name) < 1:
      raise UserError(f"{name}={getattr(settings, name)} of {of} must be 1 or more.")


def _convert(hint: Any, value: Any, where: str) -> Any:
  origin = typing.get_origin(hint)
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    if isinstance(value, hint):
      return value
    if not isinstance(value, Mapping):
      raise UserError(f"{where} must be a group of settings, not {value!r}.")
    return build(hint, value, where)
  if origin is tuple:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
      raise UserError(f"{where} must be a list, not {value!r}.")
    item = typing.get_args(hint)[0]
    return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
  if origin in (typing.Union, types.UnionType):
    if value is None:
      return None
    (inner,) = [a for a in typing.get_args(hint) if a is not type(None)]
    return _convert(inner, value, where)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if origin is typing.Literal:
    if value not in typing.get_args(hint):
      known = ", ".join(map(repr, typing.get_args(hint)))
      raise UserError(f"{where}={value!r} must be one of {known}.")
    return value
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise UserError(f"{where}={value!r} must be of type {hint.__name__}.")
  return value
