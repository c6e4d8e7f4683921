"""What is trained where the model itself stays as it is: low-rank additions to its matrices.

LoRA (Hu et al. 2021, arXiv 2106.09685): y = x·W + b + alpha / rank · (x·A)·B, where A is random at
first and B is zero. DoRA (Liu et al. 2024, arXiv 2402.09353) scales every column of W + alpha /
rank · A·B to a length of its own, `magnitude`, which is trained too; the gradient takes the length
that it had for a constant (section 4.3).

Shape suffixes: L layers, I input numbers, O output numbers, R rank, V vocabulary, D width, N rows.
"""

import dataclasses
import fnmatch
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from chexmix_jax.errors import UserError
from chexmix_jax.models.dot import dot_general
from chexmix_jax.models.dropout import dropout

PROJECTIONS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
"""The matrices of a layer."""

ADDED = ("lora_a", "lora_b", "magnitude")
"""Names of the parameters of an addition, beside the `kernel` and the `bias` of its projection."""

Base = Literal["float", "int8", "int4"]


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """What is added and trained.

  Attributes:
    kind: of the addition.
    rank: R.
    alpha: the addition is scaled by alpha / rank.
    dropout: rate on the addition's input; a layer's q, k, v and up drop the same of it.
    targets: patterns of PROJECTIONS, with * for anything.
    train: patterns of other parameters that are trained as they are, such as `layers.norm.*`.
    rows: first and last + 1 of the ids whose embedding and output are trained; () for none.
    base: how the six frozen matrices of a layer are held: as numbers of the model's dtype, or with
      8 or 4 bits (see quantization.py).
  """

  kind: Literal["lora", "dora"] = "lora"
  rank: int = 16
  alpha: float = 32.0
  dropout: float = 0.0
  targets: tuple[str, ...] = ("attn.*", "mlp.*")
  train: tuple[str, ...] = ()
  rows: tuple[int, ...] = ()
  base: Base = "float"

  def __post_init__(self):
    if self.rank < 1:
      raise UserError(f"adapter.rank={self.rank} must be 1 or more.")
    if not 0 <= self.dropout < 1:
      raise UserError(f"adapter.dropout={self.dropout} must be at least 0 and below 1.")
    for pattern in self.targets:
      if not fnmatch.filter(PROJECTIONS, pattern):
        raise UserError(
            f"adapter.targets holds {pattern!r}, which matches nothing; the matrices are"
            f" {', '.join(PROJECTIONS)}."
        )
    if self.rows and (len(self.rows) != 2 or not 0 <= self.rows[0] < self.rows[1]):
      raise UserError(f"adapter.rows={self.rows} must be a first id and the last + 1.")

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  def adapts(self, projection: str) -> bool:
    return any(fnmatch.fnmatch(projection, pattern) for pattern in self.targets)

  def trains(self, name: str) -> bool:
    """Whether the parameter of this name (as in PARAM_AXES) is trained."""
    is_added = name.rsplit(".", 1)[-1] in ADDED or name.startswith(("rows.", "classifier."))
    return is_added or any(fnmatch.fnmatch(name, pattern) for pattern in self.train)


class Projection(nnx.LinearGeneral):
  """x·W + b over the last axes of x, with the addition where the adapter has one for `name`."""

  def __init__(
      self,
      name: str,
      inputs: tuple[int, ...],
      outputs: tuple[int, ...],
      dtype: jnp.dtype,
      adapter: AdapterConfig | None,
      *,
      rngs: nnx.Rngs,
  ):
    axis = tuple(range(-len(inputs), 0))
    super().__init__(inputs, outputs, axis=axis, dtype=dtype, dot_general=dot_general, rngs=rngs)
    self.adapter = adapter if adapter and adapter.adapts(name) else None
    if self.adapter is None:
      return
    rank, least = self.adapter.rank, min(math.prod(inputs), math.prod(outputs))
    if rank > least:
      raise UserError(
          f"adapter.rank={rank} is above the {least} of {name}; lower it, or leave {name} out of"
          " adapter.targets."
      )
    # As PEFT draws it: uniform, of variance 1 / (3 · fan-in).
    bound = math.prod(inputs) ** -0.5
    lora_a = jax.random.uniform(rngs.params(), (*inputs, rank), minval=-bound, maxval=bound)
    self.lora_a = nnx.Param(lora_a)
    self.lora_b = nnx.Param(jnp.zeros((rank, *outputs)))
    if self.adapter.kind == "dora":
      self.magnitude = nnx.Param(jnp.ones(outputs))

  def __call__(self, x, key=None):
    """Dropout on the addition's input only where a key is given."""
    adapter = self.adapter
    if adapter is None:
      return super().__call__(x)
    dtype = self.dtype
    leading = x.shape[: x.ndim - len(self.in_features)]
    x_TI = x.reshape(-1, *self.in_features).astype(dtype)
    kernel, bias = self.kernel[...].astype(dtype), self.bias[...].astype(dtype)
    a, b = self.lora_a[...].astype(dtype), self.lora_b[...].astype(dtype)
    axes = tuple(range(1, x_TI.ndim))
    dropped_TI = dropout(x_TI, adapter.dropout, key)
    added_TR = dot_general(dropped_TI, a, ((axes, tuple(range(len(axes)))), ((), ())))
    added_TO = adapter.scale * jnp.tensordot(added_TR, b, 1)
    y_TO = dot_general(x_TI, kernel, ((axes, tuple(range(len(axes)))), ((), ()))) + added_TO
    if adapter.kind == "dora":
      length_O = jax.lax.stop_gradient(
          column_lengths(adapter, self.kernel[...], self.lora_a[...], self.lora_b[...])
      )
      y_TO = y_TO * (self.magnitude[...] / length_O).astype(dtype)
    return (y_TO + bias).reshape(*leading, *self.out_features)


def column_lengths(
    adapter: AdapterConfig, kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array
) -> jax.Array:
  """float32 (O): of the columns of W + alpha / rank · A·B, of one layer."""
  axes = tuple(range(lora_a.ndim - 1))
  sum_IO = kernel.astype(jnp.float32) + adapter.scale * jnp.tensordot(lora_a, lora_b, 1)
  return jnp.sqrt(jnp.sum(sum_IO**2, axis=axes))


def merge_adapter(adapter: AdapterConfig, params: dict[str, Any]) -> dict[str, Any]:
  """Parameters of the same model without additions: what each adds is in the matrix itself.

  `params` are those of all layers, stacked, with no quantised matrices. The rows take their place.
  """
  merged = with_rows(adapter, params)
  layers = dict(merged["layers"])
  for projection in PROJECTIONS:
    room, name = projection.split(".")
    if "lora_a" in (given := layers[room][name]):
      kept = {key: value for key, value in given.items() if key not in ADDED}
      kept["kernel"] = jax.vmap(lambda leaves: _merged(adapter, leaves))(given)
      layers[room] = {**layers[room], name: kept}
  return {**merged, "layers": layers}


def _merged(adapter: AdapterConfig, given: dict[str, jax.Array]) -> jax.Array:
  kernel, lora_a, lora_b = given["kernel"], given["lora_a"], given["lora_b"]
  sum_IO = kernel.astype(jnp.float32) + adapter.scale * jnp.tensordot(lora_a, lora_b, 1)
  if adapter.kind == "dora":
    sum_IO *= given["magnitude"] / column_lengths(adapter, kernel, lora_a, lora_b)
  return sum_IO.astype(kernel.dtype)


def with_rows(adapter: AdapterConfig, params: dict[str, Any]) -> dict[str, Any]:
  """The parameters with trained rows, where there are any, in place of those of their ids."""
  if "rows" not in params:
    return params
  params = dict(params)
  rows = params.pop("rows")
  ids = slice(*adapter.rows)
  table_VD, head = params["embed"]["embedding"], params["lm_head"]
  return {
      **params,
      "embed": {"embedding": table_VD.at[ids].set(rows["embedding"].astype(table_VD.dtype))},
      "lm_head": {
          "kernel": head["kernel"].at[:, ids].set(rows["kernel"].astype(head["kernel"].dtype)),
          "bias": head["bias"].at[ids].set(rows["bias"].astype(head["bias"].dtype)),
      },
  }


def take_rows(adapter: AdapterConfig, params: dict[str, Any]) -> dict[str, jax.Array]:
  """The rows of `adapter.rows` as the model has them: embedding (N, D), kernel (D, N), bias (N)."""
  ids = slice(*adapter.rows)
  return {
      "embedding": params["embed"]["embedding"][ids],
      "kernel": params["lm_head"]["kernel"][:, ids],
      "bias": params["lm_head"]["bias"][ids],
  }
