"""Draws a chest with its findings, analytically, at any size.

Brightness is attenuation: 0 is air, 1 is metal. Everything is a smooth function of position in the
unit square, so a picture shows the same at 32 and at 512 pixels.
"""

import copy
import itertools

import numpy as np
from scipy import ndimage

from chexmix_jax.phantom.anatomy import Anatomy, Exposure
from chexmix_jax.phantom.findings import Finding

_AIR, _LUNG, _TISSUE, _FLUID = 0.03, 0.20, 0.58, 0.60
_HEDGED_STRENGTH = 0.6

_HEART_TILT = 0.5

_ZONE_Y = {"upper": 0.28, "mid": 0.44, "lower": 0.59}
_SEVERITY = {"small": 0, "moderate": 1, "large": 2}

_MARKER_HEIGHT = 0.085
_LETTERS = {
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
}


def render(
    anatomy: Anatomy,
    exposure: Exposure,
    findings: tuple[Finding, ...],
    size: int,
    rng: np.random.Generator,
) -> np.ndarray:
  """The picture, uint8 (size, size). `rng` places what is inside a zone, and makes the noise."""
  canvas = _Canvas(anatomy, exposure, size)
  shape = {f.kind: f for f in findings}
  canvas.draw_chest(shape.get("cardiomegaly"), shape.get("mediastinum"), shape.get("atelectasis"))
  for finding in findings:
    draw = _DRAW.get(finding.kind)
    if draw is not None:
      draw(canvas, finding, rng)
  image = np.clip(canvas.image, 0, 1) ** exposure.gamma * exposure.gain + exposure.offset
  image += rng.normal(0, exposure.noise, image.shape)
  _burn_marker(image, exposure, size)
  return (np.clip(image, 0, 1) * 255).astype(np.uint8)


class _Canvas:
  """The picture under way, with the coordinates and masks that findings are drawn with."""

  def __init__(self, anatomy: Anatomy, exposure: Exposure, size: int):
    self.anatomy = anatomy
    self.edge = max(0.006, 0.6 / size)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    gx, gy = np.meshgrid(grid, grid)
    cos, sin = np.cos(exposure.rotation), np.sin(exposure.rotation)
    dx, dy = exposure.shift
    # float32 coordinates of the upright chest for every pixel.
    self.x = np.float32(0.5) + ((gx * cos + gy * sin) / exposure.scale + dx).astype(np.float32)
    self.y = np.float32(0.5) + ((gy * cos - gx * sin) / exposure.scale + dy).astype(np.float32)
    self.texture = self._sample(anatomy.vessels)

  def _sample(self, field: np.ndarray) -> np.ndarray:
    at = np.stack([self.y, self.x]) * (len(field) - 1)
    return ndimage.map_coordinates(field.astype(np.float32), at, order=1, mode="nearest")

  def soft(self, distance: np.ndarray, edge: float = 0.0) -> np.ndarray:
    """1 where the distance is positive, 0 where it is negative, smooth between."""
    width = max(edge, self.edge)
    return 0.5 + 0.5 * np.tanh(distance / width)

  def blob(
      self, x: float, y: float, rx: float, ry: float, edge: float = 0.0, tilt: float = 0.0
  ) -> np.ndarray:
    """A soft ellipse; `tilt` in radians lowers its right end."""
    dx, dy = self.x - x, self.y - y
    cos, sin = np.cos(tilt), np.sin(tilt)
    radius = np.hypot((dx * cos + dy * sin) / rx, (dy * cos - dx * sin) / ry)
    return self.soft((1 - radius) * min(rx, ry), edge)

  def line(self, points: list[tuple[float, float]], width: float) -> np.ndarray:
    """A soft line through the points."""
    nearest = np.full_like(self.x, 1e3)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
      ex, ey = x1 - x0, y1 - y0
      t = np.clip(((self.x - x0) * ex + (self.y - y0) * ey) / (ex * ex + ey * ey), 0, 1)
      nearest = np.minimum(nearest, np.hypot(self.x - x0 - t * ex, self.y - y0 - t * ey))
    return np.exp(-((nearest / max(width, self.edge)) ** 2))

  def add(self, amount: np.ndarray) -> None:
    """Brightens, less where it is bright already."""
    self.image += amount * (1 - self.image)

  def cover(self, mask: np.ndarray, value: float | np.ndarray) -> None:
    """Replaces by `value` where the mask is 1."""
    self.image += mask * (value - self.image)

  def center(self, side: str) -> float:
    """x of the middle of a lung."""
    offset = 0.53 * self.anatomy.chest_width
    return 0.5 + offset if side == "left" else 0.5 - offset

  def outward(self, side: str) -> np.ndarray:
    """Distance from the spine towards this side, in half chest widths."""
    sign = 1 if side == "left" else -1
    return sign * (self.x - 0.5) / self.anatomy.chest_width

  def lung_shape(self, side: str, scale: float = 1.0) -> np.ndarray:
    """Inside of the ribs on one side: positive within, in fractions of the picture's side."""
    a = self.anatomy
    middle, half = (a.apex + 0.86) / 2, (0.86 - a.apex) / 2 * scale
    rx = 0.47 * a.chest_width * scale
    # The lungs are narrower at the top than at the bottom.
    taper = 1 - 0.30 * np.clip((middle - self.y) / half, 0, 1) ** 2
    dx = np.abs((self.x - self.center(side)) / (rx * taper))
    dy = np.abs((self.y - middle) / half)
    return (1 - (dx**2.6 + dy**2.6) ** (1 / 2.6)) * rx

  def dome(self, side: str, raised: float = 0.0) -> np.ndarray:
    """y of the diaphragm on one side."""
    a = self.anatomy
    across = (self.x - self.center(side)) / (0.5 * a.chest_width)
    top = a.base + (0.025 if side == "left" else 0.0) - raised
    return top + 0.085 * across**2

  def draw_chest(self, cardiomegaly, mediastinum, atelectasis) -> None:
    a = self.anatomy
    x, y = self.x, self.y
    # Body: shoulders that slope, flanks that go straight down.
    shoulder = 0.5 * np.clip(1.25 * (y + 0.16), 0, 1)
    half_width = np.minimum(a.chest_width + 0.05 + a.fat, shoulder + 0.07)
    neck = self.soft(0.085 - np.abs(x - 0.5))
    body = np.maximum(self.soft(half_width - np.abs(x - 0.5)), neck)
    self.image = _AIR + body * (_TISSUE - _AIR)
    # Lungs, with vessels that branch out from the hila.
    self.lungs = {}
    for side in ("left", "right"):
      raised = 0.065 if atelectasis is not None and atelectasis.side == side else 0.0
      inside = self.soft(self.lung_shape(side))
      self.lungs[side] = inside * self.soft(self.dome(side, raised) - y)
      vessel = np.exp(-np.hypot(x - self.center(side), y - 0.46) / 0.16)
      self.cover(self.lungs[side], _LUNG + (0.03 + 0.07 * vessel) * self.texture)
    for side in ("left", "right"):
      # Breasts lie over the lower lungs and reach below the diaphragm.
      breast = self.blob(self.center(side), 0.62, 0.15, 0.14, 0.03)
      self.add(a.breasts * breast * body)
    # Ribs run down towards the sides; they show over lung and tissue alike.
    chest = self.soft(a.chest_width + 0.02 - np.abs(x - 0.5)) * self.soft(0.8 - y)
    step = 0.66 / a.ribs
    phase = (y - a.apex - a.rib_slope * np.abs(x - 0.5) * (1.2 - np.abs(x - 0.5))) / step
    self.add(0.12 * chest * np.exp(-(((phase % 1) - 0.5) ** 2) / 0.02))
    for sign in (-1, 1):
      self.add(0.2 * self.line([(0.5 + sign * 0.05, 0.15), (0.5 + sign * 0.34, 0.10)], 0.014))
    # Mediastinum, spine, trachea, aortic knob, hila, heart.
    widened = 0.0 if mediastinum is None else 0.055
    band = 0.042 + widened * np.exp(-(((y - 0.3) / 0.14) ** 2)) + 0.03 * np.clip(y - 0.3, 0, 1)
    centre = self.soft(band - np.abs(x - 0.5), 0.012)
    self.cover(centre * self.soft(y - 0.02), 0.64)
    disc = 0.5 + 0.5 * np.cos(2 * np.pi * y * 17)
    self.add(0.16 * self.soft(0.03 - np.abs(x - 0.5), 0.008) * (0.6 + 0.4 * disc))
    self.cover(0.75 * self.soft(0.017 - np.abs(x - 0.497)) * self.soft(0.29 - y), 0.30)
    self.cover(self.blob(0.548, 0.30, a.knob, a.knob, 0.01), 0.66)
    for sign in (-1, 1):
      self.add(0.22 * self.blob(0.5 + sign * 0.085, 0.43, 0.035, 0.06, 0.025))
    width, height = a.heart_width, a.heart_height
    shift = 0.035
    if cardiomegaly is not None:
      grade = _SEVERITY[cardiomegaly.severity]
      width *= 1.32 + 0.16 * grade
      height *= 1.08 + 0.05 * grade
      shift += 0.02 + 0.012 * grade
    # The heart points down to the patient's left, and rests on the diaphragm.
    heart = self.blob(0.5 + shift, a.base - 0.105, width, height * 0.92, 0.012, _HEART_TILT)
    self.cover(heart, 0.68)
    # Stomach bubble under the left dome.
    self.cover(0.7 * self.blob(0.66, a.base + 0.10, 0.05, 0.022, 0.01), 0.32)


def _place(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> tuple[float, float]:
  """A point in the finding's zone."""
  sign = 1 if finding.side == "left" else -1
  x = canvas.center(finding.side) + sign * rng.uniform(-0.01, 0.05)
  return x, _ZONE_Y[finding.zone] + rng.uniform(-0.025, 0.025)


def _strength(finding: Finding) -> float:
  return _HEDGED_STRENGTH if finding.hedged else 1.0


def _opacity(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  x, y = _place(canvas, finding, rng)
  haze = np.exp(-(((canvas.x - x) / 0.12) ** 2) - ((canvas.y - y) / 0.12) ** 2)
  amount = 0.34 * _strength(finding) * haze * (1 + 0.3 * canvas.texture)
  canvas.add(amount * canvas.lungs[finding.side])


def _consolidation(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  x, y = _place(canvas, finding, rng)
  radius = np.hypot((canvas.x - x) / 0.125, (canvas.y - y) / 0.105) + 0.22 * canvas.texture
  mask = canvas.soft((1 - radius) * 0.11, 0.014) * canvas.lungs[finding.side]
  canvas.cover(mask * (0.55 if finding.hedged else 0.95), 0.66)
  # Air bronchograms: dark branches in the dense area.
  sign = 1 if finding.side == "left" else -1
  for slope in (-0.35, 0.25):
    branch = canvas.line([(x - sign * 0.07, y), (x + sign * 0.05, y + 0.12 * slope)], 0.007)
    canvas.cover(0.5 * branch * mask, 0.3)


def _pneumonia(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  x, y = _place(canvas, finding, rng)
  for _ in range(7):
    px, py = x + rng.uniform(-0.085, 0.085), y + rng.uniform(-0.10, 0.10)
    patch = canvas.blob(px, py, rng.uniform(0.018, 0.032), rng.uniform(0.018, 0.032), 0.012)
    canvas.add(0.42 * _strength(finding) * patch * canvas.lungs[finding.side])


def _nodule(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  x, y = _place(canvas, finding, rng)
  radius = rng.uniform(0.045, 0.065)
  disc = canvas.blob(x, y, radius, radius, 0.004) * canvas.lungs[finding.side]
  canvas.cover((0.5 if finding.hedged else 1.0) * disc, 0.78)


def _edema(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  grade = _SEVERITY[finding.severity]
  for side in ("left", "right"):
    sign = 1 if side == "left" else -1
    wing = np.exp(
        -(((canvas.x - 0.5 - sign * 0.13) / (0.085 + 0.015 * grade)) ** 2)
        - ((canvas.y - 0.44) / 0.15) ** 2
    )
    amount = (0.34 + 0.10 * grade) * wing * (1 + 0.5 * canvas.texture)
    canvas.add(_strength(finding) * amount * canvas.lungs[side])
    # Kerley B lines: short, horizontal, at the ribs.
    wall = np.exp(-(((canvas.outward(side) - 0.86) / 0.10) ** 2))
    comb = np.clip(np.cos(2 * np.pi * canvas.y * 38), 0, 1) ** 3
    low = np.exp(-(((canvas.y - 0.6) / 0.08) ** 2))
    canvas.add(0.22 * _strength(finding) * wall * comb * low * canvas.lungs[side])


def _atelectasis(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  sign = 1 if finding.side == "left" else -1
  x = canvas.center(finding.side)
  tilt = rng.uniform(0.0, 0.03)
  for offset in (0.075, 0.125):
    y = canvas.anatomy.base - offset
    band = canvas.line([(x - sign * 0.11, y + tilt), (x + sign * 0.15, y - tilt)], 0.019)
    canvas.add(0.70 * _strength(finding) * band * canvas.soft(canvas.lung_shape(finding.side)))


def _pneumothorax(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  scale = (0.77, 0.66, 0.55)[_SEVERITY[finding.severity]]
  lung = canvas.lungs[finding.side]
  sign = 1 if finding.side == "left" else -1
  hilum, middle = 0.5 + sign * 0.06, 0.52
  # The lung falls back towards its hilum: the same outline, shrunk about that point.
  shrunk = copy.copy(canvas)
  shrunk.x = hilum + (canvas.x - hilum) / scale
  shrunk.y = middle + (canvas.y - middle) / scale
  distance = shrunk.lung_shape(finding.side) * scale
  top = canvas.soft(0.66 - canvas.y, 0.04)
  canvas.cover(lung * canvas.soft(-distance) * top, 0.07)
  collapsed = lung * canvas.soft(distance) * top
  canvas.add(0.10 * collapsed)
  canvas.add(0.5 * lung * top * np.exp(-((distance / max(0.006, canvas.edge)) ** 2)))


def _effusion(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  level = canvas.anatomy.base - (0.06, 0.15, 0.27)[_SEVERITY[finding.severity]]
  # The meniscus climbs towards the chest wall.
  wall = np.clip(canvas.outward(finding.side), 0, 1)
  surface = level - 0.11 * np.clip(wall - 0.35, 0, 1) ** 1.5 * 2
  # Down to the dome only: below it fluid and abdomen look the same.
  pleura = canvas.soft(canvas.lung_shape(finding.side) + 0.012) * canvas.soft(
      canvas.dome(finding.side) - canvas.y + 0.02
  )
  mask = pleura * canvas.soft(canvas.y - surface, 0.012)
  canvas.cover((0.6 if finding.hedged else 1.0) * mask, np.maximum(canvas.image, _FLUID))


def _thickening(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  depth = canvas.lung_shape(finding.side)
  rim = np.exp(-((depth / 0.03) ** 2)) * canvas.soft(canvas.outward(finding.side) - 0.45, 0.1)
  canvas.cover(0.8 * rim * canvas.soft(depth) * canvas.soft(0.62 - canvas.y, 0.03), 0.62)


def _fracture(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  sign = 1 if finding.side == "left" else -1
  x, y = 0.5 + sign * 0.86 * canvas.anatomy.chest_width, rng.uniform(0.36, 0.52)
  canvas.cover(0.8 * canvas.line([(x, y - 0.035), (x + sign * 0.012, y + 0.03)], 0.006), 0.1)
  canvas.add(0.55 * canvas.line([(x - sign * 0.065, y - 0.035), (x - sign * 0.01, y)], 0.013))
  canvas.add(0.55 * canvas.line([(x + sign * 0.008, y - 0.03), (x + sign * 0.05, y)], 0.013))


def _pacemaker(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  x, y = 0.755, 0.215
  dx, dy = np.abs(canvas.x - x) / 0.058, np.abs(canvas.y - y) / 0.045
  canvas.cover(canvas.soft((1 - (dx**4 + dy**4) ** 0.25) * 0.045), 0.97)
  base = canvas.anatomy.base
  lead = [(0.70, 0.21), (0.60, 0.17), (0.485, 0.26), (0.475, 0.45), (0.52, base - 0.06)]
  canvas.cover(0.9 * canvas.line([*lead, (0.59, base - 0.07)], 0.007), 0.93)


def _central_line(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  points = [(0.37, 0.0), (0.39, 0.10), (0.445, 0.19), (0.462, 0.30), (0.465, 0.44)]
  canvas.cover(0.9 * canvas.line(points, 0.008), 0.92)


def _endotracheal_tube(canvas: _Canvas, finding: Finding, rng: np.random.Generator) -> None:
  canvas.cover(0.95 * canvas.line([(0.50, 0.0), (0.499, 0.25)], 0.012), 0.95)


_DRAW = {
    "opacity": _opacity,
    "consolidation": _consolidation,
    "pneumonia": _pneumonia,
    "nodule": _nodule,
    "edema": _edema,
    "atelectasis": _atelectasis,
    "pneumothorax": _pneumothorax,
    "effusion": _effusion,
    "thickening": _thickening,
    "fracture": _fracture,
    "pacemaker": _pacemaker,
    "central line": _central_line,
    "endotracheal tube": _endotracheal_tube,
}


def _burn_marker(image: np.ndarray, exposure: Exposure, size: int) -> None:
  """Writes the side letter into the picture, upright whatever the patient's position."""
  bitmap = np.array([[int(c) for c in row] for row in _LETTERS[exposure.marker]], np.float64)
  rows, columns = bitmap.shape
  height, width = _MARKER_HEIGHT, _MARKER_HEIGHT * columns / rows
  x, y = exposure.marker_at
  # Each pixel takes as much of the letter as lies in it, so the letter can be read at any size.
  down = _overlaps(size, rows, y - height / 2, height)
  across = _overlaps(size, columns, x - width / 2, width)
  letter = down @ bitmap @ across.T
  image += letter * (0.96 - image)


def _overlaps(size: int, cells: int, start: float, length: float) -> np.ndarray:
  """(size, cells): the share of each pixel that each cell of [start, start + length) covers."""
  pixels = np.arange(size + 1) / size
  edges = start + length * np.arange(cells + 1) / cells
  low = np.maximum(pixels[:-1, None], edges[:-1])
  high = np.minimum(pixels[1:, None], edges[1:])
  return np.clip(high - low, 0, None) * size
