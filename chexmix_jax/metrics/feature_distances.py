"""Distances of pictures by the features of networks that others trained, where weights are given.

lpips and torch are no dependencies: they are imported where weights are named. No weights are
downloaded, and none are unpickled: state dicts hold tensors alone (`weights_only`). A TorchScript
network is a program, though; take it from where you trust.

Shape suffixes: N, M pictures, B of a batch, H height, W width, F features.
"""

import hashlib
import importlib
import io
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from chexmix_jax.errors import UserError
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.progress import progress

_ALEXNET_PIXELS = 31  # Of a side; of fewer its second pooling leaves nothing.


class Lpips:
  """LPIPS (Zhang et al. 2018) by AlexNet, version 0.1, as the package lpips computes it.

  Attributes:
    name: `alexnet@` and the first 8 digits of the sha256 of the weights.

  `path` is a state dict of torchvision's alexnet; the linear weights on top of it are those of the
  package. Raises UserError where the package cannot be imported or the file is not that.
  """

  def __init__(self, path: str | pathlib.Path):
    package, torch = _import("lpips", "lpips_weights"), _import("torch", "lpips_weights")
    content = _read(path, "lpips_weights")
    self.name = f"alexnet@{_digits(content)}"

    def load(content: bytes) -> dict[str, Any]:
      return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    # Random at first: the package would download the one and unpickle the other.
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Of torchvision, on how the package asks for the network.
      network = package.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    try:
      weights = load(content)
      # `slice2.3.weight` of the package is `features.3.weight` of torchvision.
      network.net.load_state_dict(
          {name: weights[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
      )
    except Exception as error:  # Whatever torch raises for bytes or shapes that are others.
      raise UserError(
          f"lpips_weights={path} is no state dict of torchvision's alexnet ({_reason(error)});"
          " write one with torch.save(alexnet.state_dict(), path)."
      ) from error
    linear = load((pathlib.Path(package.__file__).parent / "weights/v0.1/alex.pth").read_bytes())
    for number, layer in enumerate(network.lins):
      layer.load_state_dict({"model.1.weight": linear[f"lin{number}.model.1.weight"]})
    self._torch = torch
    self._network = network.eval()

  def __call__(
      self, original_NHW: np.ndarray, drawn_NHW: np.ndarray, batch_size: int = 64
  ) -> np.ndarray:
    """The distance of each pair, float64 (N,), 0 of equal ones.

    Grey pictures in [0, 1], which stand in all three channels. Raises UserError for pictures of
    fewer than 31 pixels a side.
    """
    if min(original_NHW.shape[1:]) < _ALEXNET_PIXELS:
      height, width = original_NHW.shape[1:]
      raise UserError(
          f"lpips_weights is given, but pictures of {height} x {width} are smaller than the"
          f" {_ALEXNET_PIXELS} pixels that AlexNet needs; leave it empty."
      )

    def distances(original_BHW: np.ndarray, drawn_BHW: np.ndarray) -> np.ndarray:
      pair = [self._torch.from_numpy(2 * x - 1) for x in (original_BHW, drawn_BHW)]
      return self._network(*(_three_channels(pixels) for pixels in pair))[:, 0, 0, 0].numpy()

    with self._torch.no_grad():
      return _in_batches(
          distances,
          (original_NHW.astype(np.float32), drawn_NHW.astype(np.float32)),
          batch_size, "LPIPS",
      )  # fmt: skip


class FeatureNetwork:
  """Features of whole pictures by a TorchScript network, such as `inception-2015-12-05.pt`.

  Attributes:
    name: of the file without its ending, `@`, and the first 8 digits of its sha256.

  The network is called as that of StyleGAN2-ADA: with uint8 pictures (N, 3, H, W), which it scales
  and resizes by itself, and `return_features=True`; it gives (N, F). Raises UserError where torch
  cannot be imported or the file is no TorchScript.
  """

  def __init__(self, path: str | pathlib.Path):
    self._torch = _import("torch", "fid_network")
    self._path = path
    content = _read(path, "fid_network")
    self.name = f"{pathlib.Path(path).stem}@{_digits(content)}"
    try:
      self._network = self._torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except Exception as error:  # Whatever torch raises for bytes that are others.
      raise UserError(
          f"fid_network={path} is no TorchScript ({_reason(error)}); name one, such as"
          " inception-2015-12-05.pt."
      ) from error

  def __call__(self, pictures_NHW: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Features, float64 (N, F), of grey pictures in [0, 1], rounded to 256 levels.

    Raises UserError where the network does not take these or gives something else.
    """

    def features(pictures_BHW: np.ndarray) -> np.ndarray:
      levels_BHW = np.rint(255 * np.clip(pictures_BHW, 0, 1)).astype(np.uint8)
      pixels = _three_channels(self._torch.from_numpy(levels_BHW))
      return self._network(pixels, return_features=True).numpy()

    try:
      with self._torch.no_grad():
        features_NF = _in_batches(features, (pictures_NHW,), batch_size, "FID")
    except Exception as error:  # Whatever the network raises.
      raise UserError(self._mend(_reason(error))) from error
    if features_NF.ndim != 2 or not np.isfinite(features_NF).all():
      raise UserError(self._mend(f"it gave {features_NF.shape}, or what is not finite"))
    return features_NF

  def _mend(self, reason: str) -> str:
    return (
        f"fid_network={self._path} gives no features of uint8 pictures (N, 3, H, W) with"
        f" return_features=True ({reason}); name a network that does."
    )


def frechet_distance(first_NF: np.ndarray, second_MF: np.ndarray) -> float:
  """Between the normal distributions with the means and covariances of two sets of features.

  |m - n|² + tr(C + D - 2 (C D)^½), squared distance, as in Heusel et al. 2017; covariances divide
  by N - 1. Where N is not far above F it is too large on average (Chong & Forsyth 2020): compare
  it at one N alone. Raises UserError for a set of fewer than two.
  """
  if min(len(first_NF), len(second_MF)) < 2:
    raise UserError("FID needs two pictures at least; raise num_studies.")
  features = [np.asarray(given, np.float64) for given in (first_NF, second_MF)]
  means = [rows.mean(0) for rows in features]
  factors = [
      (rows - mean) / np.sqrt(len(rows) - 1) for rows, mean in zip(features, means, strict=True)
  ]
  # With C = A'A and D = B'B the eigenvalues of C D are the squared singular values of A B', which
  # never need the root of a matrix that rounding made indefinite. R of A = QR stands for a tall A.
  traces = sum(np.sum(factor**2) for factor in factors)
  first, second = (
      np.asarray(np.linalg.qr(factor, mode="r")) if len(factor) > factor.shape[1] else factor
      for factor in factors
  )
  root = np.linalg.svd(first @ second.T, compute_uv=False).sum()
  return max(0.0, float(np.sum((means[0] - means[1]) ** 2) + traces - 2 * root))


class FeatureDistances:
  """LPIPS and FID of drawn pictures to the originals, (N, H, W) in [0, 1], where weights are given.

  Attributes:
    options: `lpips` and `fid` -> name of the features, for a signature; of those that are given.

  Without `lpips_weights` (see Lpips) or `fid_network` (see FeatureNetwork) there is none of its
  figures, and nothing is imported. All that makes one impossible raises UserError here, not later.
  """

  def __init__(
      self,
      original_NHW: np.ndarray,
      lpips_weights: str = "",
      fid_network: str = "",
      batch_size: int = 64,
  ):
    self.options: dict[str, str] = {}
    self._original_NHW = original_NHW
    self._batch_size = batch_size
    self._lpips: Lpips | None = None
    self._network: FeatureNetwork | None = None
    if lpips_weights:
      self._lpips = Lpips(lpips_weights)
      self.options["lpips"] = self._lpips.name
      self._lpips(original_NHW[:1], original_NHW[:1])
    if fid_network:
      self._network = FeatureNetwork(fid_network)
      self.options["fid"] = self._network.name
      self._original_NF = self._network(original_NHW, batch_size)
      frechet_distance(self._original_NF[:2], self._original_NF[:2])

  def lpips(self, drawn_NHW: np.ndarray) -> dict[str, Figure]:
    """`lpips`: its mean over pictures."""
    if self._lpips is None:
      return {}
    values_N = self._lpips(self._original_NHW, drawn_NHW, self._batch_size)
    return {"lpips": bootstrap.mean(values_N)}

  def fid(self, drawn_NHW: np.ndarray) -> dict[str, float]:
    """`fid`: the Fréchet distance of the features of all pictures.

    It is of the sample and no mean over pictures: a thousand samples of it would take a thousand
    decompositions as large as F or N, so it has no interval.
    """
    if self._network is None:
      return {}
    drawn_NF = self._network(drawn_NHW, self._batch_size)
    return {"fid": frechet_distance(self._original_NF, drawn_NF)}


def _import(name: str, setting: str) -> Any:
  try:
    return importlib.import_module(name)
  except Exception as error:  # What is there may still not fit what it needs.
    raise UserError(
        f"{setting} is given, but {name} cannot be imported ({_reason(error)}); pip install {name},"
        f" or leave {setting} empty."
    ) from error


def _read(path: str | pathlib.Path, setting: str) -> bytes:
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(
        f"{setting}={path} cannot be read ({error.strerror}); name the file, or leave {setting}"
        " empty."
    ) from error


def _digits(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:8]


def _reason(error: Exception) -> str:
  first, *_ = str(error).strip().split("\n")
  return f"{type(error).__name__}: {first}"


def _three_channels(pixels_NHW: Any) -> Any:
  return pixels_NHW[:, None].expand(-1, 3, -1, -1)


def _in_batches(
    function: Callable[..., np.ndarray],
    arrays: tuple[np.ndarray, ...],
    batch_size: int,
    name: str,
) -> np.ndarray:
  """What `function` gives for the rows of all arrays, float64 (N, …)."""
  starts = range(0, len(arrays[0]), batch_size)
  parts = [
      function(*(array[start : start + batch_size] for array in arrays))
      for start in progress(starts, desc=f"inpainting, {name}", unit="batch", leave=False)
  ]
  return np.concatenate(parts).astype(np.float64)
