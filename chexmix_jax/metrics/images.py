"""How alike two pictures are: PSNR, L1, SSIM and MS-SSIM, of each pair of a batch by itself.

All take pictures (N, H, W) in [0, 1], give float32 (N,) and can be jitted. Shape suffixes: N
pictures, H height, W width, P rows and Q columns of windows that fit wholly.
"""

import jax
import jax.numpy as jnp
import numpy as np

from chexmix_jax.errors import UserError

_MIN_ERROR = 1e-10  # A mean squared error below it counts as this: at most 100 dB.

_RADIUS = 5  # Of the window of SSIM, in pixels.
_WIDTH = 2 * _RADIUS + 1
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2

# Table of the paper, from the finest scale on; they add up to 1.0001.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(a_NHW: jax.Array, b_NHW: jax.Array, where: jax.Array | None = None) -> jax.Array:
  """Peak signal-to-noise ratio in dB, at most 100: (N,).

  -10 log10 of the mean squared error, over the pixels that `where`, bool (N, H, W), names.
  """
  error_N = jnp.mean((a_NHW - b_NHW) ** 2, axis=(1, 2), where=where)
  return -10 * jnp.log10(jnp.maximum(error_N, _MIN_ERROR))


def l1(a_NHW: jax.Array, b_NHW: jax.Array, where: jax.Array | None = None) -> jax.Array:
  """Mean absolute error over the pixels that `where`, bool (N, H, W), names: (N,)."""
  return jnp.mean(jnp.abs(a_NHW - b_NHW), axis=(1, 2), where=where)


def ssim(a_NHW: jax.Array, b_NHW: jax.Array) -> jax.Array:
  """Structural similarity: (N,).

  Wang et al. 2004: an 11 x 11 Gaussian window of standard deviation 1.5, where it fits wholly;
  K1 = 0.01, K2 = 0.03; variances without Bessel's correction. That is scikit-image's
  structural_similarity with gaussian_weights, sigma=1.5 and without use_sample_covariance.
  (torchmetrics' also averages windows over a mirrored border, so its number is another.)

  Raises UserError where a side is shorter than 11 pixels.
  """
  luminance_NPQ, structure_NPQ = _compare_windows(a_NHW, b_NHW)
  return jnp.mean(luminance_NPQ * structure_NPQ, axis=(1, 2))


def masked_ssim(a_NHW: jax.Array, b_NHW: jax.Array, hidden_NHW: jax.Array) -> jax.Array:
  """Structural similarity of what is hidden, bool (N, H, W): (N,).

  The mean of `ssim` over the windows whose centre is a hidden pixel. A window reaches 5 pixels
  beyond its centre, so it may see what is not hidden; a hidden pixel that is nearer than that to
  the edge has no window, and does not count. NaN where none counts.

  Raises UserError where a side is shorter than 11 pixels.
  """
  luminance_NPQ, structure_NPQ = _compare_windows(a_NHW, b_NHW)
  counted_NPQ = hidden_NHW[:, _RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
  return jnp.mean(luminance_NPQ * structure_NPQ, axis=(1, 2), where=counted_NPQ)


def ms_ssim(a_NHW: jax.Array, b_NHW: jax.Array) -> jax.Array:
  """Multi-scale structural similarity: (N,).

  Wang, Simoncelli & Bovik 2003: contrast and structure are compared at every scale, luminance at
  the coarsest alone, and the means multiplied with the paper's weights as exponents; negative means
  count as 0. A scale is the one before it averaged over 2 x 2 pixels, an odd last row or column
  left out.

  The windows of contrast and structure are those that fit wholly; those of the coarsest scale,
  where few would, are centred on every pixel of a picture mirrored at its border. That is
  torchmetrics' multiscale_structural_similarity_index_measure with data_range=1.

  Small pictures have fewer scales, see `ms_ssim_scales`: the weights of the finest ones, enlarged
  to the same sum. Scores of different numbers of scales cannot be compared.

  Raises UserError where a side is shorter than 11 pixels.
  """
  num_scales = ms_ssim_scales(*a_NHW.shape[1:])
  weights = np.array(_SCALE_WEIGHTS[:num_scales])
  weights *= sum(_SCALE_WEIGHTS) / weights.sum()
  product_N = jnp.ones(len(a_NHW))
  for weight in weights[:-1].tolist():
    _, structure_NPQ = _compare_windows(a_NHW, b_NHW)
    product_N *= _power(jnp.mean(structure_NPQ, axis=(1, 2)), weight)
    a_NHW, b_NHW = _halve(a_NHW), _halve(b_NHW)
  border = ((0, 0), (_RADIUS, _RADIUS), (_RADIUS, _RADIUS))
  luminance_NHW, structure_NHW = _compare_windows(
      jnp.pad(a_NHW, border, "reflect"), jnp.pad(b_NHW, border, "reflect")
  )
  return product_N * _power(jnp.mean(luminance_NHW * structure_NHW, axis=(1, 2)), weights[-1])


def ms_ssim_scales(height: int, width: int) -> int:
  """Scales that `ms_ssim` has for pictures of this size, 1 to 5.

  As many as leave a window of 11 pixels room in the coarsest: 5 from 176 pixels on, 4 from 88.
  Raises UserError where a side is shorter than 11 pixels.
  """
  _check_size(height, width)
  return min(len(_SCALE_WEIGHTS), (min(height, width) // _WIDTH).bit_length())


def _check_size(height: int, width: int) -> None:
  if min(height, width) < _WIDTH:
    raise UserError(
        f"Pictures of {height} x {width} pixels are too small for SSIM; use {_WIDTH} or more a"
        " side."
    )


def _compare_windows(a_NHW: jax.Array, b_NHW: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Luminance, and contrast with structure, of every window that fits: (N, P, Q) both."""
  _check_size(*a_NHW.shape[1:])
  weights = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * _SIGMA**2))
  weights /= weights.sum()
  # Twice the covariance is what the variances have beyond the variance of the difference, which is
  # small: so, and with moments around mid-grey, float32 loses less in the differences below.
  x, y = a_NHW - 0.5, b_NHW - 0.5
  moments = jnp.stack([x, y, x * x + y * y, (x - y) ** 2])
  # Sums of shifted pictures: a convolution would be rounded to bfloat16 on a TPU.
  for axis in (2, 3):
    length = moments.shape[axis] - _WIDTH + 1
    moments = sum(
        weight * jax.lax.slice_in_dim(moments, i, i + length, axis=axis)
        for i, weight in enumerate(weights.tolist())
    )
  mean_x, mean_y, squares, squared_difference = moments
  variances = squares - (mean_x**2 + mean_y**2)
  variance_of_difference = squared_difference - (mean_x - mean_y) ** 2
  mean_a, mean_b = mean_x + 0.5, mean_y + 0.5
  luminance_NPQ = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
  return luminance_NPQ, 1 - variance_of_difference / (variances + _C2)


def _halve(x_NHW: jax.Array) -> jax.Array:
  """Means over 2 x 2 pixels."""
  count, height, width = len(x_NHW), x_NHW.shape[1] // 2, x_NHW.shape[2] // 2
  even_NHW = x_NHW[:, : 2 * height, : 2 * width]
  return even_NHW.reshape(count, height, 2, width, 2).mean((2, 4))


def _power(mean_N: jax.Array, weight: float) -> jax.Array:
  return jnp.maximum(mean_N, 0) ** weight
