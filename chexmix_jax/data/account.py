"""The account of a job: read, written, refused by reason; read = written + refused."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from chexmix_jax.data.sources.source import Refusal, Source
from chexmix_jax.errors import UserError
from chexmix_jax.files import write_lines

Refused = dict[str, Any]
"""A Refusal as JSON."""

_PLURALS = {"row": "rows", "study": "studies", "picture": "pictures"}


def as_json(refusals: Sequence[Refusal]) -> list[Refused]:
  """The refusals as lines of a quarantine file."""
  return [dataclasses.asdict(refusal) for refusal in refusals]


def totals(source: Source) -> dict[str, int]:
  """Rows, studies and pictures of a source, by level of a refusal."""
  pictures = sum(len(study.pictures) for study in source.studies)
  return {"row": source.num_rows, "study": len(source.studies), "picture": pictures}


def make_account(read: Mapping[str, int], refused: Sequence[Refused]) -> dict[str, Any]:
  """For each level: read, written, refused and how many of each kind."""
  account = {}
  for level, number in read.items():
    kinds = collections.Counter(r["kind"] for r in refused if r["level"] == level)
    account[_PLURALS[level]] = {
        "read": number,
        "written": number - kinds.total(),
        "refused": kinds.total(),
        "reasons": dict(kinds.most_common()),
    }
  return account


def describe_account(account: Mapping[str, Any]) -> str:
  """The account in a few lines."""
  lines = []
  for name, level in account.items():
    reasons = ", ".join(f"{number} {kind}" for kind, number in level["reasons"].items())
    lines.append(
        f"{name}: {level['read']:,} read, {level['written']:,} used, {level['refused']:,} refused"
        + (f" ({reasons})" if reasons else "")
    )
  return "\n".join(lines)


def check_refused(
    read: Mapping[str, int], refused: Sequence[Refused], max_refused: float, path: pathlib.Path
) -> None:
  """UserError where more than a share of the rows, studies or pictures read was refused.

  Then `path` gets the quarantine so far.
  """
  for level, total in read.items():
    of_level = [refusal for refusal in refused if refusal["level"] == level]
    if len(of_level) > max_refused * total:
      write_lines(path, refused)
      raise UserError(
          f"{len(of_level)} of {total} {_PLURALS[level]} were refused, more than"
          f" --max_refused={max_refused} allows; {path} says why, the first for:"
          f" {of_level[0]['kind']}."
      )
