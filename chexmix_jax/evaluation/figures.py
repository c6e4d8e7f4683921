"""Drawings of evaluations and of training, without a display; each function gives a Figure.

Curves go by name, in the order they are given: what was never trained is grey and dashed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

UNTRAINED = "random initialisation"
_COLOURS = (
    "#1f6fb2", "#d1662b", "#3b8f5a", "#8757a8", "#b08d1a", "#c23b6a", "#2fa3a3", "#6b5444",
)  # fmt: skip
_STYLE = {"linewidth": 1.6, "marker": "o", "markersize": 3}
_GREY = "#8a94a0"

Lines = Sequence[Mapping[str, float]]
"""Lines of a metrics.jsonl."""


def auroc_by_ratio(ratios: np.ndarray, auroc: Mapping[str, np.ndarray]) -> Figure:
  """AUROC at the chosen layer, (M,) for each name, over the M mask ratios."""
  figure, (axis,) = _figure(1, 1, 5.0, 3.2)
  for name, values_M in auroc.items():
    axis.plot(ratios, values_M, label=name, **_style(name, auroc))
  axis.set_xticks(ratios)
  _label(axis, "", "share of the image hidden", "AUROC")
  axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
  _chance(axis)
  _legend(figure, axis)
  return figure


def by_ratio(
    panels: Mapping[str, tuple[Sequence[float], Mapping[str, np.ndarray]]]
) -> Figure:
  """A panel for each title, over its M shares hidden: middle, low and high (M, 3) by name."""
  figure, axes = _figure(1, len(panels), 3.4 * len(panels), 3.6)
  for axis, (title, (ratios, bands)) in zip(axes, panels.items(), strict=True):
    for name, values_M3 in bands.items():
      style = _style(name, bands)
      axis.plot(ratios, values_M3[:, 0], label=name, **style)
      axis.fill_between(ratios, *values_M3[:, 1:].T, color=style["color"], alpha=0.12, linewidth=0)
    _label(axis, title, "share of the image hidden")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
  _legend(figure, axes[0])
  return figure


def adaptation(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    findings: Sequence[str],
    scores: Mapping[str, np.ndarray],
) -> Figure:
  """NLL of the training reports by step, and F1 of F findings, of arms by name.

  `curves` are steps (T,) and values of S seeds (S, T), `scores` (F, S).
  """
  figure = Figure(figsize=(10.4, 3.8), layout="constrained")
  axes = figure.subplots(1, 2, width_ratios=(1, 1.8))
  for axis in axes:
    _clean(axis)
  for name, (steps_T, values_ST) in curves.items():
    axes[0].plot(steps_T, values_ST.mean(0), color=_colour(name, scores), linewidth=1.4)
  _label(axes[0], "NLL of the training reports", "step", "nats a token")
  for number, (name, scores_FS) in enumerate(scores.items()):
    places_F = np.arange(len(findings)) + 0.8 * ((number + 0.5) / len(scores) - 0.5)
    colour, width = _colour(name, scores), 0.8 / len(scores)
    axes[1].bar(places_F, scores_FS.mean(1), width, label=name, color=colour, alpha=0.75)
    for scores_F in scores_FS.T:
      axes[1].plot(places_F, scores_F, ".", color="#1c2733", markersize=3)
  _label(axes[1], "F1 of the findings in reports of the test split; a dot a seed", "")
  axes[1].set_xticks(range(len(findings)), findings, rotation=25, ha="right")
  _legend(figure, axes[1])
  return figure


def auroc_by_layer(ratios: np.ndarray, auroc: Mapping[str, np.ndarray]) -> Figure:
  """AUROC of every layer, (M, L) for each name, a panel for each of the M mask ratios."""
  figure, axes = _figure(1, len(ratios), 2.4 * len(ratios), 2.7, sharey=True)
  for m, (axis, ratio) in enumerate(zip(axes, ratios, strict=True)):
    for name, values_ML in auroc.items():
      axis.plot(values_ML[m], label=name, **_style(name, auroc))
    _label(axis, f"{ratio:.0%} hidden", "layer", "" if m else "AUROC")
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    _chance(axis)
  _legend(figure, axes[0])
  return figure


def calibration(
    findings: Sequence[str], curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]
) -> Figure:
  """A panel for each finding: mean probability and share of positives, (B,) each, by name."""
  figure, axes = _figure(1, len(findings), 2.4 * len(findings), 2.9, sharey=True)
  for axis, finding in zip(axes, findings, strict=True):
    axis.plot((0, 1), (0, 1), color=_GREY, linewidth=0.8, linestyle=":")
    for name, found in curves.items():
      if finding in found:
        axis.plot(*found[finding], label=name, **_style(name, curves))
    _label(axis, finding, "probability", "" if axis is not axes[0] else "share positive")
  _legend(figure, axes[0])
  return figure


def training_curves(stages: Mapping[str, Lines], image_tokenizer: Lines) -> Figure:
  """Loss and negative log-likelihoods of stages that follow one another, and the tokenizer's."""
  figure, axes = _figure(2, 3, 9.6, 5.2)
  panels = {
      "loss": "loss, weighted nats a token",
      "image_nll": "image, nats a token",
      "text_nll": "text, nats a token",
  }
  for axis, (key, title) in zip(axes[:3], panels.items(), strict=True):
    start = 0.0
    for name, lines in stages.items():
      if start:
        axis.axvline(start, color=_GREY, linewidth=0.8, linestyle=":")
      steps = [start + line["step"] for line in lines]
      values = [line[key] for line in lines]
      axis.plot(steps, values, label=name, color=_colour(name, stages), linewidth=1.4)
      start = steps[-1]
    _label(axis, title, "step")
  panels = {
      "psnr": "image tokenizer, PSNR in dB",
      "perplexity": "codebook, perplexity",
      "usage": "codebook, share of codes in use",
  }
  steps = [line["step"] for line in image_tokenizer]
  for axis, (key, title) in zip(axes[3:], panels.items(), strict=True):
    axis.plot(steps, [line[key] for line in image_tokenizer], color=_COLOURS[2], linewidth=1.4)
    _label(axis, title, "step")
  axes[5].set_ylim(0, 1.05)
  _legend(figure, axes[0])
  return figure


def range_test(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, marks: Mapping[str, float]
) -> Figure:
  """Losses over learning rates, (N,) each, with marks at some rates, by name."""
  figure, (axis,) = _figure(1, 1, 6.4, 3.8)
  axis.plot(rates, losses, color=_GREY, linewidth=0.8, label="loss of a step")
  axis.plot(rates, smoothed, color=_COLOURS[0], linewidth=1.8, label="smoothed")
  for (name, rate), colour in zip(marks.items(), _COLOURS[1:], strict=False):
    axis.axvline(rate, color=colour, linewidth=1.2, linestyle="--", label=f"{name}, {rate:.2g}")
  axis.set_xscale("log")
  # What is lost at the end would press all the rest into a line.
  low, high = float(losses.min()), float(losses[: smoothed.argmin() + 1].max())
  margin = 0.1 * (high - low)
  axis.set_ylim(low - margin, min(float(losses.max()), high + 4 * margin) + margin)
  _label(axis, "", "learning rate", "loss")
  axis.legend(frameon=False, fontsize=8)
  return figure


def _figure(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, list[Axes]]:
  """A figure of `width` x `height` inches and its axes in reading order."""
  figure = Figure(figsize=(width, height), layout="constrained")
  axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
  for axis in axes:
    _clean(axis)
  return figure, axes


def _clean(axis: Axes) -> None:
  axis.spines[["top", "right"]].set_visible(False)
  axis.grid(color="#e6eaee", linewidth=0.8)
  axis.tick_params(labelsize=8)


def _label(axis: Axes, title: str, xlabel: str, ylabel: str = "") -> None:
  axis.set_title(title, fontsize=9)
  axis.set_xlabel(xlabel, fontsize=9)
  axis.set_ylabel(ylabel, fontsize=9)


def _legend(figure: Figure, axis: Axes) -> None:
  """The names of the lines of `axis`, above all axes."""
  handles, names = axis.get_legend_handles_labels()
  figure.legend(
      handles, names, loc="outside upper left", ncols=min(len(names), 5), frameon=False, fontsize=9
  )


def _chance(axis: Axes) -> None:
  axis.axhline(0.5, color=_GREY, linewidth=0.8, linestyle=":")


def _colour(name: str, names: Mapping[str, Any]) -> str:
  return _GREY if name == UNTRAINED else _COLOURS[list(names).index(name) % len(_COLOURS)]


def _style(name: str, names: Mapping[str, Any]) -> dict[str, Any]:
  dashed = {"linestyle": "--"} if name == UNTRAINED else {}
  return {**_STYLE, "color": _colour(name, names), **dashed}
