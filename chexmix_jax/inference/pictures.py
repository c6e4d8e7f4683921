"""Predictions as PNG files."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

_GAP = 4  # Pixels of white between pictures.
_GREY = 128  # Of a hidden cell.


def side_by_side(pictures: Sequence[np.ndarray]) -> bytes:
  """A PNG of uint8 pictures (H, W, C) of one height, from left to right."""
  gap = np.full((len(pictures[0]), _GAP, pictures[0].shape[2]), 255, np.uint8)
  row = [part for picture in pictures for part in (gap, picture)][1:]
  pixels = np.concatenate(row, axis=1)
  png = io.BytesIO()
  Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(png, "png")
  return png.getvalue()


def hide(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
  """The picture uint8 (H, W, C) with the hidden cells, bool (h, w), in grey."""
  cell = len(picture) // len(hidden)
  pixels = hidden.repeat(cell, axis=0).repeat(cell, axis=1)
  return np.where(pixels[..., None], np.uint8(_GREY), picture)


def surprise_map(picture: np.ndarray, maps: Mapping[str, np.ndarray]) -> bytes:
  """A PNG of maps in nats, (h, w) by title, each over the picture uint8 (H, W, C).

  All share one scale, which begins at 0.
  """
  figure = Figure(figsize=(4.4 * len(maps) + 1, 5), layout="constrained", dpi=120)
  axes = list(figure.subplots(1, len(maps), squeeze=False).flat)
  highest = max(float(values.max()) for values in maps.values())
  height, width = picture.shape[:2]
  for axis, (title, values) in zip(axes, maps.items(), strict=True):
    axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
    drawn = axis.imshow(
        values, cmap="inferno", vmin=0, vmax=highest, alpha=0.5,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest",
    )  # fmt: skip
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
  bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
  bar.set_label("-log p of the image token, nats", fontsize=9)
  figure.suptitle("What surprises the model: not a diagnosis", fontsize=11)
  png = io.BytesIO()
  figure.savefig(png, format="png")
  return png.getvalue()
