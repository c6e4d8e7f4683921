"""Safetensors files: what is written is what the library reads, whole or in shards."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors

from chexmix_jax.conversion.tensors import SafetensorsFiles, check_shapes, write_safetensors
from chexmix_jax.errors import UserError


def _tensors(dtype):
  rng = np.random.default_rng(0)
  shapes = {"a": (4, 3), "b": (5,), "c": (2, 2, 2), "d": ()}
  return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def _sources(tensors):
  return [(name, tensor.shape, lambda t=tensor: t) for name, tensor in tensors.items()]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shard_bytes", [10**9, 30])
def test_there_and_back(tmp_path, dtype, shard_bytes):
  tensors = _tensors(dtype)
  turned = tensors | {"a": tensors["a"].T.copy().T}  # Not contiguous: the library would corrupt it.
  write_safetensors(tmp_path, _sources(turned), np.dtype(dtype), shard_bytes)
  found = SafetensorsFiles(tmp_path)
  assert (len(found.files) > 1) == (shard_bytes == 30)
  assert dict(found).keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert found.shapes[name] == tensor.shape and found[name].dtype == dtype
    np.testing.assert_array_equal(found[name], tensor)


def test_shards_are_named_as_transformers_names_them(tmp_path):
  write_safetensors(tmp_path, _sources(_tensors(np.float32)), np.dtype(np.float32), 60)
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == 4 * (12 + 5 + 8 + 1)
  names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
  assert names == [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
  for name, file in index["weight_map"].items():
    with safetensors.safe_open(tmp_path / file, "numpy") as opened:
      assert name in opened.keys()  # noqa: SIM118


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
  with pytest.raises(UserError, match=r"holds no model\.safetensors"):
    SafetensorsFiles(tmp_path)
  with pytest.raises(UserError, match=r"x\.safetensors is not there"):
    SafetensorsFiles(tmp_path / "x.safetensors")
  (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
  with pytest.raises(UserError, match=r"x\.safetensors is not a safetensors file"):
    SafetensorsFiles(tmp_path / "x.safetensors")
  index = tmp_path / "model.safetensors.index.json"
  index.write_text("[]")
  with pytest.raises(UserError, match="not an index"):
    SafetensorsFiles(index)
  index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
  with pytest.raises(UserError, match=r"gone\.safetensors is not there"):
    SafetensorsFiles(index)


def test_all_that_is_wrong_is_listed():
  check_shapes("x", {"a": (1,)}, {"a": (1,)})
  with pytest.raises(UserError) as error:
    check_shapes("x", {"a": (1,), "b": (2,), "c": (3,)}, {"b": (4,), "c": (3,), "d": ()})
  assert "missing: a; unexpected: d; of another shape: b (4,) instead of (2,)" in str(error.value)
