import io

import numpy as np
import pytest
from PIL import Image

from chexmix_jax import phantom
from chexmix_jax.data import images, leaks

SPLITS = ("train", "val", "test")


def _jpeg(picture):
  """Smaller, as a poor JPEG, and back at its size."""
  buffer = io.BytesIO()
  Image.fromarray(picture).resize((100, 100), Image.Resampling.LANCZOS).save(
      buffer, "jpeg", quality=40
  )
  return np.asarray(Image.open(buffer).resize(picture.shape))


def _darker(picture):
  return (picture * 0.8 + 30).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures():
  return [phantom.make_study(0, 2 * i, 128).image for i in range(60)]


def _member(split, number, picture=None, patient=None):
  hashes = [] if picture is None else [leaks.picture_hash(picture)]
  return leaks.Member(split, number, patient or f"p{number}", hashes)


@pytest.mark.parametrize("change", [_jpeg, _darker, lambda picture: picture])
def test_copies_of_pictures_are_found_and_others_are_not(pictures, change):
  members = [_member("train", i, picture) for i, picture in enumerate(pictures)]
  copies = [_member("test", 100 + i, change(pictures[i])) for i in range(5, 15)]
  found = leaks.find_leaks([*members, *copies], SPLITS)
  assert {(leak.drop.number, leak.keep.number) for leak in found} == {
      (i, 100 + i) for i in range(5, 15)
  }
  assert {leak.kind for leak in found} == {"picture"}


def test_copies_within_one_split_are_no_leak(pictures):
  members = [_member("train", i, pictures[0]) for i in range(5)]
  assert not leaks.find_leaks(members, SPLITS)


def test_a_patient_in_two_splits_keeps_the_last_one():
  members = [
      _member("train", 0, patient="a"), _member("val", 1, patient="a"), _member("test", 2),
      _member("test", 3, patient="a"), _member("train", 4, patient="b"),
      _member("val", 5, patient="c"),
  ]  # fmt: skip
  found = leaks.find_leaks(members, SPLITS)
  assert [(leak.kind, leak.drop.number, leak.keep.number) for leak in found] == [
      ("patient", 1, 3),
      ("patient", 0, 3),
  ]


def test_studies_without_pictures_are_compared_by_patient_alone():
  assert leaks.find_leaks([_member("train", 0), _member("test", 1)], SPLITS) == []


def test_real_pictures_of_different_studies_are_apart(shared):
  paths = sorted((shared / "data" / "nih14" / "images").iterdir())[:120]
  read = [images.grey(images.read_image(path, 128)) for path in paths]
  members = [_member(SPLITS[i % 3], i, picture) for i, picture in enumerate(read)]
  assert not leaks.find_leaks(members, SPLITS)
  copy = _member("test", 999, _jpeg(read[3]))
  assert [leak.drop.number for leak in leaks.find_leaks([*members, copy], SPLITS)] == [3]
