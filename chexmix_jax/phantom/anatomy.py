"""Geometry of a chest in the unit square (x to the right, y down), and how a study exposes it."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Anatomy:
  """What stays the same over a patient's studies; lengths are fractions of the picture's side."""

  chest_width: float  # Half the width of both lungs together.
  apex: float  # y of the lungs' tops.
  base: float  # y of the right dome; the left one is a little lower.
  heart_width: float  # Half.
  heart_height: float  # Half.
  knob: float  # Radius of the aortic knob.
  ribs: int
  rib_slope: float
  fat: float  # Soft tissue beyond the ribs.
  breasts: float  # How much they brighten the lower lungs; 0 where there are none.
  vessels: np.ndarray  # (24, 24) in about [-1, 1]: texture of the lungs.


@dataclasses.dataclass(frozen=True)
class Exposure:
  """What differs from study to study for reasons that mean nothing."""

  rotation: float  # Radians.
  scale: float
  shift: tuple[float, float]
  gamma: float
  gain: float
  offset: float
  noise: float
  marker: str  # "L" or "R".
  marker_at: tuple[float, float]  # Centre of the letter.


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
  """A patient's chest."""
  return Anatomy(
      chest_width=rng.uniform(0.325, 0.385),
      apex=rng.uniform(0.09, 0.13),
      base=rng.uniform(0.67, 0.78),
      heart_width=rng.uniform(0.125, 0.15),
      heart_height=rng.uniform(0.13, 0.155),
      knob=rng.uniform(0.03, 0.045),
      ribs=int(rng.integers(8, 11)),
      rib_slope=rng.uniform(0.18, 0.34),
      fat=rng.uniform(0.02, 0.09),
      breasts=rng.uniform(0.06, 0.14) if rng.random() < 0.5 else 0.0,
      vessels=rng.uniform(-1, 1, (24, 24)),
  )


def draw_exposure(rng: np.random.Generator) -> Exposure:
  """A study's position, dose and side marker."""
  marker = "L" if rng.random() < 0.6 else "R"
  # The patient's left is the picture's right.
  x = rng.uniform(0.92, 0.95) if marker == "L" else rng.uniform(0.05, 0.08)
  return Exposure(
      rotation=rng.normal(0, 0.025),
      scale=rng.uniform(0.92, 1.08),
      shift=(rng.normal(0, 0.015), rng.normal(0, 0.015)),
      gamma=rng.uniform(0.8, 1.3),
      gain=rng.uniform(0.8, 1.05),
      offset=rng.uniform(0.0, 0.06),
      noise=rng.uniform(0.004, 0.012),
      marker=marker,
      marker_at=(x, rng.uniform(0.06, 0.12)),
  )
