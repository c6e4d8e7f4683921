"""Scores of pictures, against scikit-image and torchmetrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.metrics.images import l1, masked_ssim, ms_ssim, ms_ssim_scales, psnr, ssim

# Of make_pictures in float64: SSIM and PSNR by scikit-image 0.26.0, MS-SSIM by torchmetrics 1.9.0,
# SSIM of hidden pixels by scikit-image's map.
GOLDENS = {
  (192, 200): {
    "ssim": (0.935279, 0.607833, 0.231934),
    "masked_ssim": (0.930328, 0.531728, 0.402949),
    "ms_ssim": (0.988495, 0.864422, 0.429568),
    "psnr": (31.538444, 19.831602, 10.461137),
  },
  (47, 50): {
    "ssim": (0.987040, 0.813445, 0.371442),
    "masked_ssim": (0.976758, 0.783074, 0.460990),
    "ms_ssim": (0.997258, 0.957595, 0.786464),
    "psnr": (31.988964, 19.854872, 10.557320),
  },
  (16, 16): {
    "ssim": (0.994025, 0.933991, 0.400981),
    "masked_ssim": (0.994579, 0.939700, 0.508475),
    "ms_ssim": (0.992805, 0.930493, 0.553541),
    "psnr": (31.296763, 19.773534, 10.784154),
  },
}
WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])


@pytest.fixture(scope="module", params=GOLDENS, ids="{0[0]}x{0[1]}".format)
def pair(request):
  a, b = make_pictures(*request.param)
  return GOLDENS[request.param], a, b, hidden_pixels(a.shape)


def make_pictures(height, width):
  """Three pairs, (3, H, W) each: smooth, with noise on the second, black at the left of both."""
  rng = np.random.default_rng([height, width])
  y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)

  def waves(highest):
    parts = [
        np.cos(2 * np.pi * (fy * y + fx * x + phase))
        for fy, fx, phase in rng.uniform([0, 0, 0], [highest, highest, 1], (6, 3))
    ]
    return np.mean(parts, axis=0)

  pairs = []
  for strength in (0.1, 0.4, 1.5):
    a = 0.5 + waves(6)
    b = a + strength * waves(20) + rng.normal(0, 0.1 * strength, a.shape)
    a[:, : width // 5] = b[:, : width // 5] = 0
    pairs.append(np.clip([a, b], 0, 1))
  return np.stack(pairs, axis=1)


def hidden_pixels(shape):
  """Another block of each picture: a band, a half, a corner."""
  hidden = np.zeros(shape, bool)
  height, width = shape[1:]
  hidden[0, height // 3 : height // 2] = True
  hidden[1, :, width // 2 :] = True
  hidden[2, : height // 2, : width // 2] = True
  return hidden


@pytest.fixture(scope="module")
def scores(pair):
  _, a, b, hidden = pair

  @jax.jit
  def score(a, b, hidden):
    return {
        "ssim": ssim(a, b),
        "masked_ssim": masked_ssim(a, b, hidden),
        "ms_ssim": ms_ssim(a, b),
        "psnr": psnr(a, b),
    }

  return score(jnp.asarray(a), jnp.asarray(b), hidden)


@pytest.mark.parametrize("name", ["ssim", "masked_ssim", "ms_ssim", "psnr"])
def test_scores_are_those_of_other_packages(pair, scores, name):
  np.testing.assert_allclose(scores[name], pair[0][name], atol=1e-5)


def test_ssim_and_psnr_are_those_of_the_installed_scikit_image(pair, scores):
  metrics = pytest.importorskip("skimage.metrics")
  _, a, b, hidden = pair
  for i, (x, y) in enumerate(zip(a, b, strict=True)):
    found, likeness = metrics.structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
        full=True,
    )  # fmt: skip
    inner = (slice(5, -5), slice(5, -5))
    np.testing.assert_allclose(scores["ssim"][i], found, atol=1e-5)
    masked = likeness[inner][hidden[i][inner]].mean()
    np.testing.assert_allclose(scores["masked_ssim"][i], masked, atol=1e-5)
    ratio = metrics.peak_signal_noise_ratio(x, y, data_range=1)
    np.testing.assert_allclose(scores["psnr"][i], ratio, atol=1e-4)


def test_ssim_and_ms_ssim_are_those_of_the_installed_torchmetrics(pair, scores):
  functional = pytest.importorskip("torchmetrics.functional.image")
  torch = pytest.importorskip("torch")
  _, a, b, _ = pair
  a, b = (torch.tensor(x)[:, None] for x in (a, b))
  # Its mean is over a mirrored border too, its map is the same within.
  _, likeness = functional.structural_similarity_index_measure(
      a, b, data_range=1.0, return_full_image=True
  )
  inner = likeness[:, 0, 5:-5, 5:-5].mean((1, 2))
  np.testing.assert_allclose(scores["ssim"], inner, atol=1e-5)
  weights = WEIGHTS[: ms_ssim_scales(*a.shape[2:])]
  weights = weights * (WEIGHTS.sum() / weights.sum())
  found = functional.multiscale_structural_similarity_index_measure(
      a, b, data_range=1.0, betas=tuple(weights.tolist()), reduction="none"
  )
  np.testing.assert_allclose(scores["ms_ssim"], found, atol=1e-5)


def test_errors_of_a_known_size():
  a, where = jnp.full((2, 4, 6), 0.5), np.zeros((2, 4, 6), bool)
  where[:, 0] = True
  b = a + 0.1 * jnp.asarray(where) * jnp.array([1.0, -1.0])[:, None, None]
  np.testing.assert_allclose(psnr(a, b, where), 20, atol=1e-4)
  np.testing.assert_allclose(psnr(a, b), 20 + 10 * np.log10(4), atol=1e-4)
  np.testing.assert_allclose(l1(a, b, where), 0.1, atol=1e-6)
  np.testing.assert_allclose(l1(a, b), 0.025, atol=1e-6)
  np.testing.assert_allclose(psnr(a, a), 100, atol=1e-4)


def test_ssim_is_the_mean_over_windows():
  rng = np.random.default_rng(0)
  a = rng.random((2, 14, 15))
  b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
  distance = np.arange(11) - 5
  window = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
  window /= window.sum()
  hidden = np.zeros(a.shape, bool)
  hidden[:, :7, 8:] = True  # Centres of the windows in rows 0 and 1, columns 3 and 4.
  found = jax.jit(ssim)(a, b), jax.jit(masked_ssim)(a, b, hidden)
  for x, y, all_found, masked_found in zip(a, b, *found, strict=True):
    values = np.zeros((4, 5))
    for top in range(14 - 10):
      for left in range(15 - 10):
        p, q = (z[top : top + 11, left : left + 11] for z in (x, y))
        mean_p, mean_q = np.sum(window * p), np.sum(window * q)
        var_p, var_q = (np.sum(window * (z - m) ** 2) for z, m in ((p, mean_p), (q, mean_q)))
        cov = np.sum(window * (p - mean_p) * (q - mean_q))
        likeness = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
        values[top, left] = likeness * (2 * cov + 9e-4) / (var_p + var_q + 9e-4)
    np.testing.assert_allclose(all_found, np.mean(values), atol=1e-5)
    np.testing.assert_allclose(masked_found, np.mean(values[:2, 3:]), atol=1e-5)


def test_likeness_of_a_flat_picture_with_itself_and_of_opposites():
  rng = np.random.default_rng(0)
  a = np.stack([np.full((24, 24), 0.9), np.zeros((24, 24)), rng.random((24, 24))])
  b = np.concatenate([a[:2], 1 - a[2:]])
  one_scale, all_scales = jax.jit(ssim)(a, b), jax.jit(ms_ssim)(a, b)
  np.testing.assert_allclose(one_scale[:2], 1, atol=1e-6)
  np.testing.assert_allclose(all_scales[:2], 1, atol=1e-6)
  assert one_scale[2] < 0 and all_scales[2] == 0


def test_hidden_pixels_without_a_window_have_no_likeness():
  a = jnp.full((2, 16, 16), 0.5)
  hidden = np.zeros(a.shape, bool)
  hidden[0, :5], hidden[1, :6] = True, True
  np.testing.assert_array_equal(jax.jit(masked_ssim)(a, a, hidden), [np.nan, 1])


def test_small_pictures_have_fewer_scales():
  sides = (11, 21, 22, 43, 44, 87, 88, 175, 176, 4096)
  assert [ms_ssim_scales(side, 5000) for side in sides] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
  assert ms_ssim_scales(5000, 44) == 3
  small = jnp.zeros((1, 10, 64))
  for score in (lambda: ssim(small, small), lambda: ms_ssim(small, small)):
    with pytest.raises(UserError, match="10 x 64 pixels are too small for SSIM; use 11 or more"):
      score()
