"""Linear probes: many L2 logistic regressions at once.

Shape suffixes: L layers, N studies, D features, F findings, S strengths of the penalty, G = F·S.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# The step that is left, in the norm of the majoriser: far below what moves a rank.
_TOLERANCE = 3e-6
_MAX_ITERATIONS = 2000

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3)
"""Of the penalty, to choose among."""


@dataclasses.dataclass(frozen=True)
class Probes:
  """Fitted probes of every layer, finding and strength.

  Attributes:
    mean_LD: of the features that were fitted.
    scale_LD: their standard deviation, 1 where a feature is constant.
    weights_LDFS: of standardised features.
    bias_LFS: never penalised.
  """

  mean_LD: np.ndarray
  scale_LD: np.ndarray
  weights_LDFS: np.ndarray
  bias_LFS: np.ndarray

  def scores(self, features_NLD: np.ndarray) -> np.ndarray:
    """Log-odds, float32 (N, L, F, S)."""
    standard_NLD = ((features_NLD - self.mean_LD) / self.scale_LD).astype(np.float32)
    products_NLFS = np.einsum("NLD,LDFS->NLFS", standard_NLD, self.weights_LDFS, optimize=True)
    return products_NLFS + self.bias_LFS


def fit_probes(
    features_NLD: np.ndarray, targets_NF: np.ndarray, strengths: Sequence[float]
) -> Probes:
  """Minimises mean log-loss + strength / 2 · |w|² over standardised features.

  That is scikit-learn's LogisticRegression with C = 1 / (N · strength). Studies that are NaN in
  `targets_NF` do not count for that finding; every finding needs a positive and a negative study.
  """
  mean_LD = features_NLD.mean(0, dtype=np.float64)
  scale_LD = features_NLD.std(0, dtype=np.float64)
  # A constant feature has a spread of rounding errors only.
  scale_LD = np.where(scale_LD > 1e-6 * np.abs(mean_LD), scale_LD, 1.0)
  standard_NLD = ((features_NLD - mean_LD) / scale_LD).astype(np.float32)
  weights_LDG, bias_LG = jax.device_get(
      _minimise(
          jnp.asarray(standard_NLD.swapaxes(0, 1)),
          jnp.asarray(targets_NF, jnp.float32),
          jnp.asarray(strengths, jnp.float32),
      )
  )
  shape = (targets_NF.shape[1], len(strengths))
  return Probes(
      mean_LD,
      scale_LD,
      weights_LDG.reshape(*weights_LDG.shape[:2], *shape),
      bias_LG.reshape(-1, *shape),
  )


@jax.jit
def _minimise(x_LND, targets_NF, strengths_S):
  """Accelerated gradient steps with restarts (O'Donoghue & Candès 2015), in principal axes.

  There the curvature of the log-loss is at most a quarter of the features' variances (Böhning &
  Lindsay 1988), a diagonal: steps scaled by it are safe for every problem, whatever its data, and
  collinear features do not slow them down. No line search, so all problems go in step.
  """
  count, num_strengths = x_LND.shape[1], len(strengths_S)
  known_NG = jnp.repeat(jnp.isfinite(targets_NF), num_strengths, axis=1).astype(jnp.float32)
  known_G = known_NG.sum(0)
  covariance_LDD = jnp.einsum("LND,LNE->LDE", x_LND, x_LND, precision="highest") / count
  variances_LD, axes_LDD = jnp.linalg.eigh(covariance_LDD)
  z_LND = jnp.einsum("LND,LDE->LNE", x_LND, axes_LDD, precision="highest")
  z_LDN = z_LND.swapaxes(1, 2)
  targets_NG = jnp.repeat(jnp.nan_to_num(targets_NF), num_strengths, axis=1)
  strengths_G = jnp.tile(strengths_S, targets_NF.shape[1])
  # A mean over fewer studies has no more curvature than their sum over all.
  majoriser_LDG = jnp.maximum(variances_LD, 0)[..., None] * (count / known_G) / 4 + strengths_G
  majoriser_bias = 0.25

  def unfinished(carry):
    return (carry["iteration"] < _MAX_ITERATIONS) & (carry["left"] > _TOLERANCE)

  def step(carry):
    ahead_LDG, ahead_bias_LG = carry["ahead"]
    weights_LDG, bias_LG = carry["now"]
    logits_LNG = jnp.matmul(z_LND, ahead_LDG, precision="highest") + ahead_bias_LG[:, None]
    residual_LNG = (jax.nn.sigmoid(logits_LNG) - targets_NG) * (known_NG / known_G)
    gradient_LDG = jnp.matmul(z_LDN, residual_LNG, precision="highest")
    gradient_LDG += strengths_G * ahead_LDG
    gradient_bias_LG = residual_LNG.sum(1)
    new_LDG = ahead_LDG - gradient_LDG / majoriser_LDG
    new_bias_LG = ahead_bias_LG - gradient_bias_LG / majoriser_bias
    moved_LDG, moved_bias_LG = new_LDG - weights_LDG, new_bias_LG - bias_LG
    # Momentum that points uphill is dropped.
    uphill_LG = (gradient_LDG * moved_LDG).sum(1) + gradient_bias_LG * moved_bias_LG > 0
    inertia_LG = jnp.where(uphill_LG, 1.0, carry["inertia"])
    next_inertia_LG = (1 + jnp.sqrt(1 + 4 * inertia_LG**2)) / 2
    momentum_LG = (inertia_LG - 1) / next_inertia_LG
    left_LG = (gradient_LDG**2 / majoriser_LDG).sum(1) + gradient_bias_LG**2 / majoriser_bias
    return {
        "iteration": carry["iteration"] + 1,
        "now": (new_LDG, new_bias_LG),
        "ahead": (
            new_LDG + momentum_LG[:, None] * moved_LDG,
            new_bias_LG + momentum_LG * moved_bias_LG,
        ),
        "inertia": next_inertia_LG,
        "left": jnp.sqrt(left_LG.max()),
    }

  rate_G = targets_NG.sum(0) / known_G
  bias_LG = jnp.broadcast_to(jnp.log(rate_G / (1 - rate_G)), (len(x_LND), len(rate_G)))
  start = (jnp.zeros_like(majoriser_LDG), bias_LG)
  first = {
      "iteration": 0, "now": start, "ahead": start, "inertia": jnp.ones_like(bias_LG),
      "left": jnp.float32(jnp.inf),
  }  # fmt: skip
  z_weights_LDG, bias_LG = jax.lax.while_loop(unfinished, step, first)["now"]
  return jnp.matmul(axes_LDD, z_weights_LDG, precision="highest"), bias_LG
