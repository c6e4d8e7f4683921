import io

import numpy as np
from PIL import Image

from chexmix_jax.inference import pictures
from chexmix_jax.inference.pictures import hide, side_by_side, surprise_map


def read(png):
  return np.asarray(Image.open(io.BytesIO(png)))


def test_pictures_stand_side_by_side_as_they_are():
  rng = np.random.default_rng(0)
  for channels in (1, 3):
    parts = [rng.integers(0, 200, (6, width, channels), np.uint8) for width in (5, 6, 7)]
    found = read(side_by_side(parts)).reshape(6, -1, channels)
    assert found.shape[1] == 18 + 2 * 4
    np.testing.assert_array_equal(found[:, :5], parts[0])
    np.testing.assert_array_equal(found[:, 9:15], parts[1])
    np.testing.assert_array_equal(found[:, -7:], parts[2])
    assert np.all(found[:, 5:9] == 255)


def test_hidden_cells_are_grey():
  picture = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
  hidden = np.array([[True, False], [False, False]])
  found = hide(picture, hidden)
  assert np.all(found[:4, :4] == 128)
  np.testing.assert_array_equal(found[4:], picture[4:])
  np.testing.assert_array_equal(found[:, 4:], picture[:, 4:])


def test_a_surprise_map_shows_values_on_one_scale_and_says_what_it_is_not(monkeypatch):
  figures = []

  class Kept(pictures.Figure):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      figures.append(self)

  monkeypatch.setattr(pictures, "Figure", Kept)
  maps = {"first": np.array([[0.0, 2.0], [1.0, 3.0]]), "second": np.full((2, 2), 7.0)}
  png = read(surprise_map(np.zeros((16, 16, 1), np.uint8), maps))
  assert png.ndim == 3 and min(png.shape[:2]) > 300
  (figure,) = figures
  assert "not a diagnosis" in figure.get_suptitle()
  *axes, bar = figure.axes
  assert [axis.get_title() for axis in axes] == ["first", "second"]
  assert "nats" in bar.get_ylabel()
  for axis, values in zip(axes, maps.values(), strict=True):
    under, over = axis.images
    assert over.get_clim() == (0, 7) and over.get_extent() == under.get_extent()
    np.testing.assert_array_equal(over.get_array(), values)
