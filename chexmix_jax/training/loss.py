"""Cross-entropy over a large vocabulary, without all tokens' logits in memory at once."""

import functools
import math

import jax
import jax.numpy as jnp

from chexmix_jax.parallel.sharding import RULES, partition_spec

CHUNK_LOGITS = 1 << 26  # Numbers of a chunk on a device: 256 MiB in float32.


def weighted_nll(
    hidden_BTD: jax.Array,
    kernel_DV: jax.Array,
    bias_V: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Weighted sum of the targets' negative log-likelihoods, and these themselves, float32 (B, T).

  Logits are hidden · kernel + bias, computed in the type of `hidden`, chunk by chunk of the tokens.
  Only the sum can be differentiated: its gradients with respect to hidden, kernel and bias are made
  from the same logits as the sum, so that none are computed twice. On a mesh each device takes its
  own rows and its own part of the vocabulary; the kernel is gathered once, and its gradient is
  reduced once.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return _weighted_nll((), (), (), hidden_BTD, kernel_DV, bias_V, targets_BT, weights_BT)
  # Without those of one device: the TPU compiler does not drop a sum over them.
  batch, embed, vocab = (
      tuple(axis for axis in RULES[name] if mesh.shape[axis] > 1)
      for name in ("batch", "embed", "vocab")
  )
  hidden, rows = partition_spec(("batch", None, None)), partition_spec(("batch", None))
  return jax.shard_map(
      functools.partial(_weighted_nll, batch, embed, vocab),
      in_specs=(
          hidden, partition_spec(("embed", "vocab")), partition_spec(("vocab",)), rows, rows
      ),
      out_specs=(jax.sharding.PartitionSpec(), rows),
      check_vma=False,
  )(hidden_BTD, kernel_DV, bias_V, targets_BT, weights_BT)  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _weighted_nll(batch, embed, vocab, hidden_BTD, kernel_DV, bias_V, targets_BT, weights_BT):
  """On one device; `batch`, `embed` and `vocab` are the mesh axes that share these out."""
  (total, nll_BT), _ = _run(
      batch, embed, vocab, hidden_BTD, kernel_DV, bias_V, targets_BT, weights_BT, False
  )
  return total, nll_BT


def _forward(batch, embed, vocab, hidden_BTD, kernel_DV, bias_V, targets_BT, weights_BT):
  return _run(batch, embed, vocab, hidden_BTD, kernel_DV, bias_V, targets_BT, weights_BT, True)


def _backward(batch, embed, vocab, gradients, cotangents):
  # shard_map gives each of the devices that hold a copy of the sum an equal part of its cotangent.
  scale = jax.lax.psum(cotangents[0], (*batch, *vocab))
  scaled = jax.tree.map(lambda x: (scale * x).astype(x.dtype), gradients)
  return *scaled, None, None


_weighted_nll.defvjp(_forward, _backward)


def _run(
    batch, embed, vocab, hidden_BTD, kernel_DV, bias_V, targets_BT, weights_BT, with_gradients
):
  """The sum and its terms; and gradients for hidden, kernel and bias, or None."""
  kernel = kernel_DV.astype(hidden_BTD.dtype)
  if embed:
    kernel = jax.lax.all_gather(kernel, embed, axis=0, tiled=True)
  depth, width = kernel.shape
  tokens = math.prod(targets_BT.shape)
  chunks = _chunks(tokens, width)
  first = jax.lax.axis_index(vocab) * width if vocab else 0

  def one_chunk(carry, chunk):
    hidden_ND, targets_N, weights_N = chunk
    logits_NV = (hidden_ND @ kernel).astype(jnp.float32) + bias_V.astype(jnp.float32)
    # Not a lookup, which would write the logits to memory and read them again.
    is_target_NV = first + jnp.arange(width) == targets_N[:, None]
    largest_N = jax.lax.stop_gradient(logits_NV.max(axis=-1))
    if vocab:
      largest_N = jax.lax.pmax(largest_N, vocab)
    exponents_NV = jnp.exp(logits_NV - largest_N[:, None])
    sums_N = exponents_NV.sum(axis=-1)
    at_target_N = jnp.where(is_target_NV, logits_NV, 0.0).sum(axis=-1)
    if vocab:
      sums_N, at_target_N = jax.lax.psum((sums_N, at_target_N), vocab)
    nll_N = jnp.log(sums_N) + largest_N - at_target_N
    if not with_gradients:
      return carry, (nll_N, None)
    softmax_NV = exponents_NV / sums_N[:, None]
    d_logits_NV = weights_N[:, None] * (softmax_NV - is_target_NV)
    d_bias_V = d_logits_NV.sum(axis=0)
    d_logits_NV = d_logits_NV.astype(hidden_ND.dtype)
    d_hidden_ND = d_logits_NV @ kernel.T
    d_kernel_DV = jnp.einsum(
        "ND,NV->DV", hidden_ND, d_logits_NV, preferred_element_type=jnp.float32
    )
    return jax.tree.map(jnp.add, carry, (d_kernel_DV, d_bias_V)), (nll_N, d_hidden_ND)

  split = jax.tree.map(
      lambda x: x.reshape(chunks, tokens // chunks, *x.shape[2:]),
      (hidden_BTD, targets_BT, weights_BT),
  )
  zeros = (jnp.zeros((depth, width)), jnp.zeros(width)) if with_gradients else None
  if chunks == 1:
    sums, parts = one_chunk(zeros, jax.tree.map(lambda x: x[0], split))
  else:
    sums, parts = jax.lax.scan(one_chunk, zeros, split)
  nll_BT = parts[0].reshape(targets_BT.shape)
  total = jnp.sum(nll_BT * weights_BT)
  if batch:
    total = jax.lax.psum(total, batch)
  if not with_gradients:
    return (total, nll_BT), None
  d_kernel_DV, d_bias_V = sums
  d_hidden_BTD = parts[1].reshape(hidden_BTD.shape)
  # What else has to be summed over devices, shard_map sums.
  if embed:
    d_kernel_DV = jax.lax.psum_scatter(d_kernel_DV, embed, scatter_dimension=0, tiled=True)
  gradients = (
      d_hidden_BTD, d_kernel_DV.astype(kernel_DV.dtype), d_bias_V.astype(bias_V.dtype)
  )  # fmt: skip
  return (total, nll_BT), gradients


def _chunks(tokens: int, width: int) -> int:
  """The fewest equal chunks of `tokens` whose logits are no more than CHUNK_LOGITS."""
  least = min(-(-tokens * width // CHUNK_LOGITS), tokens)
  return next(number for number in range(least, tokens + 1) if tokens % number == 0)
