"""The probes against scikit-learn's, and against definitions."""

import numpy as np
import pytest

from chexmix_jax.training.probe import fit_probes

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


@pytest.fixture(scope="module")
def data():
  """Two layers of 30 features, the second of very uneven spread; a common and a rare finding."""
  rng = np.random.default_rng(0)
  latent = rng.normal(size=(400, 30))
  features = np.stack([
      latent @ (rng.normal(size=(30, 30)) * np.exp(-np.arange(30) / 3)[:, None]) * 5 + 100,
      latent * np.logspace(-4, 2, 30) - 3,
  ], axis=1)  # fmt: skip
  chances = latent[:, :5] @ rng.normal(size=(5, 2)) * 2 + rng.logistic(size=(400, 2))
  return features.astype(np.float32), (chances > np.array([0.0, 5.5])).astype(np.int8)


def test_probes_equal_scikit_learns_logistic_regression(data):
  linear_model = pytest.importorskip("sklearn.linear_model")
  features, targets = data
  assert 5 <= targets[:, 1].sum() <= 40  # Rare.
  probes = fit_probes(features, targets, STRENGTHS)
  scores = probes.scores(features)
  for layer in range(2):
    x = features[:, layer].astype(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    for finding in range(2):
      for i, strength in enumerate(STRENGTHS):
        theirs = linear_model.LogisticRegression(
            C=1 / (len(x) * strength), tol=1e-12, max_iter=100_000
        ).fit(x, targets[:, finding])
        np.testing.assert_allclose(
            probes.weights_LDFS[layer, :, finding, i], theirs.coef_[0], atol=1e-3
        )
        expected = theirs.decision_function(x)
        np.testing.assert_allclose(
            scores[:, layer, finding, i], expected, atol=1e-3 * expected.std()
        )


def test_probes_do_not_mind_constant_and_repeated_features(data):
  features, targets = data
  plain = fit_probes(features, targets, (0.1,)).scores(features)
  constant = np.full_like(features[..., :1], 0.1)
  padded = np.concatenate([features, constant], axis=-1)
  np.testing.assert_allclose(
      fit_probes(padded, targets, (0.1,)).scores(padded), plain, atol=1e-3
  )
  # Twice the same feature shares one weight, and a penalty on it that counts half.
  doubled = np.concatenate([features, features], axis=-1)
  np.testing.assert_allclose(
      fit_probes(doubled, targets, (0.2,)).scores(doubled), plain, atol=1e-3
  )
