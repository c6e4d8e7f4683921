"""Distances of features: Fréchet's against torchmetrics and scipy, LPIPS against its package."""

import hashlib
import sys
import types

import numpy as np
import pytest
import scipy.linalg

from chexmix_jax.errors import UserError
from chexmix_jax.metrics.feature_distances import (
    FeatureDistances,
    FeatureNetwork,
    Lpips,
    frechet_distance,
)

# Of make_features, by FrechetInceptionDistance of torchmetrics 1.9.0 in float64, which was given
# the features for pictures. Where there are fewer pictures than features it is off at the 7th
# digit, and the formula was computed with mpmath 1.3.0 to 50 digits.
GOLDENS = {
    (50, 40, 5): 1.998229770,
    (30, 30, 1): 0.282507033,
    (6, 9, 20): 37.779477953,
    (12, 2, 4): 5.462172330,
}


def make_features(first, second, width):
  rng = np.random.default_rng([first, second, width])
  mix = rng.normal(size=(width, width)) / np.sqrt(width)
  return rng.normal(size=(first, width)), 0.5 + rng.normal(size=(second, width)) @ mix


@pytest.mark.parametrize("shape", GOLDENS)
def test_frechet_distance_is_that_of_others(shape):
  features = make_features(*shape)
  assert frechet_distance(*features) == pytest.approx(GOLDENS[shape], abs=1e-8)
  assert frechet_distance(*features[::-1]) == pytest.approx(GOLDENS[shape], abs=1e-8)
  assert frechet_distance(features[0], features[0]) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_equals_torchmetrics_as_installed():
  torch = pytest.importorskip("torch")
  fid = pytest.importorskip("torchmetrics.image.fid")

  class Same(torch.nn.Module):
    num_features = 7

    def forward(self, pictures):
      return pictures

  first, second = make_features(20, 30, 7)
  metric = fid.FrechetInceptionDistance(feature=Same()).set_dtype(torch.float64)
  metric.update(torch.from_numpy(first), real=True)
  metric.update(torch.from_numpy(second), real=False)
  assert frechet_distance(first, second) == pytest.approx(float(metric.compute()), abs=1e-9)


def test_frechet_distance_is_that_of_the_formula():
  first, second = make_features(400, 300, 12)
  root = scipy.linalg.sqrtm(np.cov(first.T) @ np.cov(second.T))
  expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(
      np.cov(first.T) + np.cov(second.T) - 2 * root
  )
  assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-9)
  # In one dimension it is the squares of the differences of mean and of standard deviation.
  one, other = np.array([[1.0], [3.0]]), np.array([[4.0], [10.0]])
  assert frechet_distance(one, other) == pytest.approx((7 - 2) ** 2 + (3 - 1) ** 2 * 2)
  with pytest.raises(UserError, match="FID needs two pictures at least; raise num_studies"):
    frechet_distance(one, other[:1])


def test_nothing_is_imported_or_computed_without_weights(monkeypatch):
  for name in ("torch", "lpips"):
    monkeypatch.setitem(sys.modules, name, None)
  pictures = np.zeros((3, 16, 16), np.float32)
  distances = FeatureDistances(pictures)
  assert distances.lpips(pictures) == distances.fid(pictures) == distances.options == {}
  with pytest.raises(UserError, match=r"lpips_weights is given, but lpips cannot be imported"):
    FeatureDistances(pictures, lpips_weights="alexnet.pth")
  with pytest.raises(UserError, match=r"fid_network is given, but torch cannot be imported"):
    FeatureDistances(pictures, fid_network="inception.pt")


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
  for name in ("torch", "lpips"):
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  with pytest.raises(UserError, match=r"lpips_weights=.*none\.pth cannot be read \(No such file"):
    Lpips(tmp_path / "none.pth")
  with pytest.raises(UserError, match=r"fid_network=.* cannot be read \(Is a directory\)"):
    FeatureNetwork(tmp_path)


@pytest.fixture(scope="module")
def alexnet():
  """torchvision's alexnet with random weights, whose features do not fade with depth."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("lpips")
  network = pytest.importorskip("torchvision").models.alexnet(weights=None)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, leaf in network.features.named_parameters():
      scale = leaf[0].numel() ** -0.5 if name.endswith("weight") else 0.1
      leaf.normal_(0, 2 * scale, generator=generator)
  return network


@pytest.fixture(scope="module")
def alexnet_path(alexnet, tmp_path_factory):
  """The state dict of its features alone: the rest, 55 million numbers, is not read."""
  torch = pytest.importorskip("torch")
  path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
  torch.save({f"features.{k}": v for k, v in alexnet.features.state_dict().items()}, path)
  return path


def test_lpips_is_that_of_its_package(alexnet, alexnet_path, monkeypatch):
  torch, package = pytest.importorskip("torch"), pytest.importorskip("lpips")
  pictures = np.random.default_rng(0).random((2, 5, 40, 33)).astype(np.float32)
  scorer = Lpips(alexnet_path)
  # As the package builds itself, with these weights where it would download some.
  tv = package.pretrained_networks.tv
  monkeypatch.setattr(tv, "alexnet", lambda pretrained: alexnet if pretrained else None)
  reference = package.LPIPS(net="alex", verbose=False)
  pair = [torch.from_numpy(p)[:, None].repeat(1, 3, 1, 1) for p in pictures]
  expected = reference(*pair, normalize=True).detach().numpy().ravel()
  found = scorer(*pictures, batch_size=2)
  assert found.shape == (5,) and found.dtype == np.float64
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found.min() > 0.01
  np.testing.assert_array_equal(scorer(pictures[0], pictures[0]), 0)
  assert scorer.name == f"alexnet@{hashlib.sha256(alexnet_path.read_bytes()).hexdigest()[:8]}"


def test_weights_and_pictures_that_do_not_fit_lpips_are_named(alexnet_path, tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "weights.pth"
  pictures = np.zeros((2, 31, 30), np.float32)
  with pytest.raises(UserError, match=r"pictures of 31 x 30 are smaller than the 31 pixels"):
    FeatureDistances(pictures, lpips_weights=str(alexnet_path))
  pictures = np.zeros((2, 31, 31), np.float32)
  assert FeatureDistances(pictures, lpips_weights=str(alexnet_path)).options.keys() == {"lpips"}

  class Evil:
    def __reduce__(self):
      return (pytest.fail, ("bytes of the file were run",))

  for content in ({"features.0.weight": torch.zeros(1)}, Evil(), {"features.0.weight": Evil()}):
    torch.save(content, path)
    with pytest.raises(UserError, match=r"is no state dict of torchvision's alexnet"):
      Lpips(path)
  path.write_bytes(b"no weights")
  with pytest.raises(UserError, match=r"is no state dict of torchvision's alexnet"):
    Lpips(path)


@pytest.fixture(scope="module")
def network_path(tmp_path_factory):
  """A network as FID's: mean of each channel, and of the upper half, only if features are asked."""
  torch = pytest.importorskip("torch")

  class Network(torch.nn.Module):
    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
      assert pictures.dtype == torch.uint8 and pictures.shape[1] == 3
      pixels = pictures.to(torch.float32)
      upper = pixels[:, :1, : pixels.shape[2] // 2]
      features = torch.cat([pixels.mean(dim=(2, 3)), upper.mean(dim=(2, 3))], dim=1)
      return features if return_features else features[:, 0]

  path = tmp_path_factory.mktemp("weights") / "means-2015.pt"
  torch.jit.script(Network()).save(str(path))
  return path


def test_fid_is_of_the_features_of_rounded_pictures(network_path):
  original, drawn = np.random.default_rng(0).random((2, 9, 8, 6)).astype(np.float32)
  drawn = 1.2 * drawn - 0.1

  def features(pictures):
    levels = np.rint(255 * np.clip(pictures, 0, 1))
    return np.stack([*[levels.mean((1, 2))] * 3, levels[:, :4].mean((1, 2))], axis=1)

  np.testing.assert_allclose(
      FeatureNetwork(network_path)(drawn, batch_size=4), features(drawn), rtol=1e-6
  )
  distances = FeatureDistances(original, fid_network=str(network_path), batch_size=4)
  expected = frechet_distance(features(original), features(drawn))
  assert distances.fid(drawn)["fid"] == pytest.approx(expected, rel=1e-5)
  assert distances.fid(original)["fid"] == pytest.approx(0, abs=1e-8)
  digits = hashlib.sha256(network_path.read_bytes()).hexdigest()[:8]
  assert distances.options == {"fid": f"means-2015@{digits}"}
  assert distances.lpips(drawn) == {}


def test_networks_that_give_no_features_are_named_before_anything_is_scored(
    network_path, tmp_path
):
  torch = pytest.importorskip("torch")
  pictures = np.zeros((3, 16, 16), np.float32)
  with pytest.raises(UserError, match="FID needs two pictures at least"):
    FeatureDistances(pictures[:1], fid_network=str(network_path))
  path = tmp_path / "network.pt"
  path.write_bytes(b"no network")
  with pytest.raises(UserError, match=r"fid_network=.*network\.pt is no TorchScript"):
    FeatureDistances(pictures, fid_network=str(path))
  torch.save({"features.0.weight": torch.zeros(1)}, path)
  with pytest.raises(UserError, match=r"fid_network=.*network\.pt is no TorchScript"):
    FeatureDistances(pictures, fid_network=str(path))
  torch.jit.script(torch.nn.Identity()).save(str(path))
  with pytest.raises(UserError, match=r"network\.pt gives no features of uint8 pictures"):
    FeatureDistances(pictures, fid_network=str(path))

  class Grid(torch.nn.Module):
    def forward(self, pictures: torch.Tensor, return_features: bool) -> torch.Tensor:
      return pictures.to(torch.float32)

  torch.jit.script(Grid()).save(str(path))
  with pytest.raises(UserError, match=r"it gave \(3, 3, 16, 16\)"):
    FeatureDistances(pictures, fid_network=str(path))
