"""Products of few rows with a bfloat16 matrix, on CPUs that do not know bfloat16.

XLA makes a float32 matrix of it there, twice its size, for every product. Here eight rows of the
matrix at a time are added up as they are read, which takes as long as reading them; a product with
ones then adds up what that leaves.
"""

import math

import jax
import jax.numpy as jnp

_ROWS = 4  # Of more, XLA's product is faster: here each row reads the matrix anew.
_TOGETHER = 8  # XLA fuses no more conversions with their sum.
_PIECE = 1 << 21  # Sums on the way; more of them leave the cache, fewer take longer to compile.


def dot_general(
    lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, **kwargs
):
  """jax.lax.dot_general, where it contracts the last axes of `lhs` with the first of `rhs`."""

  def whole(lhs, rhs):
    return jax.lax.dot_general(
        lhs, rhs, dimension_numbers, precision, preferred_element_type, **kwargs
    )

  ((_, axes), (batch, _)) = dimension_numbers
  rows = math.prod(lhs.shape[: lhs.ndim - len(axes)])
  depth = math.prod(rhs.shape[: len(axes)])
  is_plain = not batch and tuple(axes) == tuple(range(len(axes)))
  if not is_plain or rhs.dtype != jnp.bfloat16 or rows > _ROWS or depth % _TOGETHER:
    return whole(lhs, rhs)

  def by_row(lhs, rhs):
    lhs_MK = lhs.reshape(rows, depth).astype(jnp.float32)
    rhs_KN = rhs.reshape(depth, -1)
    sums_MN = jnp.stack([_row_times_matrix(lhs_K, rhs_KN) for lhs_K in lhs_MK])
    shape = (*lhs.shape[: lhs.ndim - len(axes)], *rhs.shape[len(axes) :])
    return sums_MN.reshape(shape).astype(preferred_element_type or lhs.dtype)

  return jax.lax.platform_dependent(lhs, rhs, cpu=by_row, default=whole)


def _row_times_matrix(lhs_K: jax.Array, rhs_KN: jax.Array) -> jax.Array:
  """The product, float32 (N,)."""
  depth, columns = rhs_KN.shape
  step = max(_PIECE // columns, 1) * _TOGETHER
  total_N = jnp.zeros(columns)
  for start in range(0, depth, step):
    end = min(start + step, depth)
    sums_GN = sum(
        lhs_K[i:end:_TOGETHER, None] * rhs_KN[i:end:_TOGETHER].astype(jnp.float32)
        for i in range(start, start + _TOGETHER)
    )
    # Were the products added up in the same operation, XLA would convert the matrix before it.
    sums_GN = jax.lax.optimization_barrier(sums_GN)
    total_N += jnp.ones(len(sums_GN)) @ sums_GN
  return total_N
