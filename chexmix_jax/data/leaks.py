"""Studies that stand in two splits: of one patient, or with nearly the same picture.

A picture's hash is in which places of a 16 x 16 and of a 32 x 32 thumbnail a pixel is brighter than
its left neighbour (a difference hash). The coarse one finds pairs, the fine one decides.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

# Copies of 423 pictures of NIH ChestX-ray14 (smaller and as a JPEG of quality 40, darker, another
# gamma) differ from them in at most 12 bits of the coarse hash and 76 of the fine one; pictures of
# different studies in at least 23 and 171.
_COARSE, _FINE = 16, 32
_MAX_COARSE, _MAX_FINE = 15, 120
# Two coarse hashes that differ in at most 15 bits agree in one of 16 parts.
_PARTS = 16
# Neighbouring bits of a hash are alike in all radiographs, so every part gets bits from everywhere.
_ORDER = np.random.default_rng(0).permutation(_COARSE**2)


@dataclasses.dataclass(frozen=True)
class Member:
  """A study as the leak check sees it.

  Attributes:
    split: its split; of a leak the copy in the earlier one of train, val, test is the one to drop.
    number: says which study it is.
    patient: a patient's id.
    hashes: of its pictures, hex.
  """

  split: str
  number: int
  patient: str
  hashes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Leak:
  """A study to drop, and one in a later split that it repeats; `kind` is patient or picture."""

  kind: str
  drop: Member
  keep: Member


def picture_hash(picture: np.ndarray) -> str:
  """The hash of uint8 (H, W), in hex."""
  image = Image.fromarray(picture)
  return (_brighter(image, _COARSE) + _brighter(image, _FINE)).hex()


def _brighter(image: Image.Image, side: int) -> bytes:
  thumbnail = image.resize((side + 1, side), Image.Resampling.BOX)
  values = np.asarray(thumbnail, np.int16)
  # By more than 1: a dark background's noise says nothing.
  return np.packbits(values[:, 1:] > values[:, :-1] + 1).tobytes()


def find_leaks(members: Sequence[Member], splits: Sequence[str]) -> list[Leak]:
  """Every study that repeats one of a later split of `splits`, once, by patient first."""
  rank = {split: i for i, split in enumerate(splits)}
  leaks: dict[int, Leak] = {}

  def note(kind: str, a: Member, b: Member) -> None:
    drop, keep = sorted((a, b), key=lambda member: rank[member.split])
    if drop.split != keep.split:
      leaks.setdefault(drop.number, Leak(kind, drop, keep))

  latest: dict[str, Member] = {}
  for member in sorted(members, key=lambda member: -rank[member.split]):
    note("patient", member, latest.setdefault(member.patient, member))
  owners = [member for member in members for _ in member.hashes]
  hashes = [bytes.fromhex(text) for member in members for text in member.hashes]
  if hashes:
    hashes_NB = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
    ranks_N = np.array([rank[member.split] for member in owners])
    for a, b in _near_pairs(hashes_NB, ranks_N):
      note("picture", owners[a], owners[b])
  return list(leaks.values())


def _near_pairs(hashes_NB: np.ndarray, ranks_N: np.ndarray) -> Iterator[tuple[int, int]]:
  """Numbers of two pictures in different splits whose hashes are near; a pair may come again."""
  coarse_NB, fine_NB = np.split(hashes_NB, [_COARSE**2 // 8], axis=1)
  bits = np.unpackbits(coarse_NB, axis=1)[:, _ORDER]
  parts_NP = np.packbits(bits, axis=1).reshape(len(bits), _PARTS, -1)
  for part in range(_PARTS):
    keys = parts_NP[:, part].astype(np.int64) @ [256, 1]
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order])) + 1
    for bucket in np.split(order, starts):
      # Of the later splits, which are the smaller ones, each picture is compared with the earlier.
      for number in bucket[ranks_N[bucket] > 0]:
        others = bucket[ranks_N[bucket] < ranks_N[number]]
        near = others[_distance(coarse_NB, others, number) <= _MAX_COARSE]
        near = near[_distance(fine_NB, near, number) <= _MAX_FINE]
        for other in near:
          yield int(other), int(number)


def _distance(hashes_NB: np.ndarray, others: np.ndarray, number: int) -> np.ndarray:
  """Bits in which the hash of a picture differs from those of others."""
  return np.bitwise_count(hashes_NB[others] ^ hashes_NB[number]).sum(axis=1)
