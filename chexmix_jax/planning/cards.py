"""Which ways to fine-tune fit which graphics card: a table for those who have one.

The peak is a fact of the program, not of the card, so each way is compiled once, for a TPU with
room for all of them: an estimate for GPUs, whose compiler is another. Attention is XLA's, as cards
before Hopper have no other for packed rows.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, get_args

from chexmix_jax.models.adapter import AdapterConfig, Base
from chexmix_jax.parallel.hardware import CHIPS
from chexmix_jax.parallel.mesh import MeshConfig
from chexmix_jax.planning.target import Target
from chexmix_jax.planning.training import plan_training
from chexmix_jax.training.loop import TrainConfig
from chexmix_jax.training.optimizer import MomentDtype

TOPOLOGY = "v5p:1x1x1"
"""One chip with 95 GiB; peaks for v5e and v6e were within 2 % of its."""

CARDS = {"12 GB": "RTX4070", "16 GB": "RTX4080", "24 GB": "A10", "48 GB": "L40S", "80 GB": "H100"}
"""By what cards are called, the one in CHIPS that has the least memory of them."""

USUAL = 0.75
"""Share of a card's memory that jax takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION names another."""

MOST = 0.9
"""The largest share that we would name: CUDA, its libraries and the driver need the rest."""

_ROWS = (1, 4)


@dataclasses.dataclass(frozen=True)
class Way:
  """One way to fine-tune a model: a row of the table.

  Attributes:
    base: of an adapter; None where everything is trained.
    moments: of the optimizer's first moment.
    rows: that go through at a time.
  """

  base: Base | None
  moments: MomentDtype
  rows: int

  def __str__(self) -> str:
    rows = f"{self.rows} row{'s' * (self.rows > 1)} at a time"
    if self.base is None:
      return f"everything, first moment {self.moments}, {rows}"
    return f"adapter on {self.base} base, {rows}"

  def settings(self, batch_size: int) -> str:
    """Of a config, to go this way."""
    held = f"model.adapter.base={self.base}"
    if self.base is None:
      held = f"model.adapter=None, optimizer.moment_dtype={self.moments}"
    return f"{held}, accumulation={batch_size // self.rows}"

  def distance(self, other: "Way") -> tuple[bool, bool, int]:
    """How far another way is: first what is trained, then how it is held, then the rows."""
    held = (self.base, self.moments) != (other.base, other.moments)
    return (self.base is None) != (other.base is None), held, abs(self.rows - other.rows)


@dataclasses.dataclass(frozen=True)
class Peak:
  """A way with the bytes that its training step needs at once."""

  way: Way
  bytes: float

  def share(self, card: str) -> float:
    """Of a card's memory."""
    return self.bytes / CHIPS[CARDS[card]].hbm_bytes


def way_of(config: TrainConfig) -> Way:
  """The config's own."""
  adapter = config.model.adapter
  rows = config.data.batch_size // config.accumulation
  if adapter is None:
    return Way(None, config.optimizer.moment_dtype, rows)
  return Way(adapter.base, "float32", rows)


def ways(config: TrainConfig) -> list[Way]:
  """The config's own, and all others with 1 or 4 rows at a time where these divide a batch."""
  own = way_of(config)
  batch = config.data.batch_size
  rows = sorted({own.rows, *(number for number in _ROWS if batch % number == 0)})
  adapters = [Way(base, "float32", n) for base, n in itertools.product(get_args(Base), rows)]
  whole = [Way(None, dtype, n) for dtype, n in itertools.product(get_args(MomentDtype), rows)]
  return adapters + whole


def configure(config: TrainConfig, way: Way) -> TrainConfig:
  """The config on one device, going that way; a model without an adapter gets the default one."""
  adapter, optimizer = None, config.optimizer
  if way.base is None:
    optimizer = dataclasses.replace(optimizer, moment_dtype=way.moments)
  else:
    adapter = dataclasses.replace(config.model.adapter or AdapterConfig(), base=way.base)
  attention = "xla" if config.model.attention == "auto" else config.model.attention
  return dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, adapter=adapter, attention=attention),
      optimizer=optimizer,
      accumulation=config.data.batch_size // way.rows,
      mesh=MeshConfig(1, 1, 1),
  )


def measure(config: TrainConfig, target: Target, those: Iterable[Way]) -> list[Peak]:
  """The compiled peaks of `those` ways; what does not fit the target has one too."""
  return [
      Peak(way, plan_training(configure(config, way), target).memory.total) for way in those
  ]


def nearest(peaks: list[Peak], own: Way, card: str) -> Way | None:
  """The nearest way to one's own that fits a card; None where none does."""
  fitting = [peak.way for peak in peaks if peak.share(card) <= MOST]
  return min(fitting, key=own.distance, default=None)


def to_dict(config: TrainConfig, peaks: list[Peak]) -> dict[str, Any]:
  """For JSON: peaks in bytes; of each card the share that each way leaves, and what fits best.

  `nearest` is the way nearest to the config's own that fits, its own where that does.
  """
  own, batch = way_of(config), config.data.batch_size

  def describe(way: Way) -> dict[str, Any]:
    return {"way": str(way), "settings": way.settings(batch)}

  result: dict[str, Any] = {
      "compiled_for": TOPOLOGY, "batch_size": batch, "context": config.data.context,
      "own": str(own), "usual_share": USUAL, "largest_share": MOST,
      "ways": [describe(peak.way) | {"peak": peak.bytes} for peak in peaks],
      "cards": {},
  }  # fmt: skip
  for card, kind in CARDS.items():
    near = nearest(peaks, own, card)
    result["cards"][card] = {
        "like": kind, "capacity": CHIPS[kind].hbm_bytes,
        "free": {str(peak.way): 1 - peak.share(card) for peak in peaks},
        "fits": {str(peak.way): peak.share(card) <= MOST for peak in peaks},
        "nearest": near and describe(near),
    }  # fmt: skip
  return result
