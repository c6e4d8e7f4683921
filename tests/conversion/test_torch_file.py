"""Files of torch.save are read as torch reads them, and nothing in them is ever run."""

import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from chexmix_jax.conversion.torch_file import read_state_dict, read_torch_file, write_state_dict
from chexmix_jax.errors import UserError


class _Runs:
  """Unpickled, this makes a file."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def __reduce__(self):
    return os.system, (f"touch {self._path}",)


def _zip(path, pickled, **entries):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickled)
    for name, content in entries.items():
      archive.writestr(f"archive/{name}", content)


@pytest.fixture
def tensors():
  rng = np.random.default_rng(0)
  return {
      "encoder.weight": rng.normal(size=(4, 3)).astype(np.float32).T,
      "scalar": np.float32(3.0) * np.ones((), np.float32),
      "empty": np.zeros((0, 2), np.float32),
  }


def test_what_is_written_is_read_again(tmp_path, tensors):
  write_state_dict(tmp_path / "x.ckpt", tensors)
  found = read_state_dict(tmp_path / "x.ckpt")
  assert found.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_would_run_a_command_is_refused_by_name(tmp_path, protocol, is_zip):
  path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
  evil = pickle.dumps({"state_dict": {}, "x": _Runs(trace)}, protocol)
  if is_zip:
    _zip(path, evil)
  else:
    path.write_bytes(evil)
  with pytest.raises(UserError, match=r"evil\.ckpt (asks for \w+\.system|holds .* instruction)"):
    read_torch_file(path)
  assert not trace.exists()


@pytest.mark.parametrize("name", ["builtins\neval", "copyreg\n_reconstructor", "torch\nload"])
def test_any_other_name_is_refused(tmp_path, name):
  _zip(tmp_path / "x.pt", b"\x80\x02c" + name.encode() + b"\n.")
  with pytest.raises(UserError, match=name.replace("\n", r"\.")):
    read_torch_file(tmp_path / "x.pt")


def test_other_files_and_damaged_ones_are_refused(tmp_path, tensors):
  write_state_dict(tmp_path / "x.ckpt", tensors)
  content = (tmp_path / "x.ckpt").read_bytes()
  broken = tmp_path / "broken.ckpt"
  for other in (b"", b"text", content[: len(content) // 2], pickle.dumps([1, 2])):
    broken.write_bytes(other)
    with pytest.raises(UserError, match=r"broken\.ckpt is not a file of torch\.save"):
      read_torch_file(broken)
  with pytest.raises(UserError, match="cannot be read"):
    read_torch_file(tmp_path / "absent.ckpt")
  with pytest.raises(UserError, match="no state dict"):
    _zip(tmp_path / "list.pt", pickle.dumps([1], 2))
    read_state_dict(tmp_path / "list.pt")


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, tensors):
  write_state_dict(tmp_path / "x.ckpt", tensors)
  with zipfile.ZipFile(tmp_path / "x.ckpt") as archive:
    entries = {name.removeprefix("archive/"): archive.read(name) for name in archive.namelist()}
  pickled = entries.pop("data.pkl")
  # The first size of the first tensor's shape: 3 becomes 4, and the last row lies outside.
  three, four = (b"\x8a\x08" + bytes([n]) + bytes(7) for n in (3, 4))
  assert three in pickled
  _zip(tmp_path / "y.ckpt", pickled.replace(three, four, 1), **entries)
  with pytest.raises(UserError, match="damaged"):
    read_torch_file(tmp_path / "y.ckpt")


def test_random_damage_never_does_anything_but_raise(tmp_path, tensors):
  write_state_dict(tmp_path / "x.ckpt", tensors)
  content = bytearray((tmp_path / "x.ckpt").read_bytes())
  rng = np.random.default_rng(0)
  for _ in range(200):
    damaged = bytearray(content)
    for place in rng.integers(0, len(content), 3):
      damaged[place] = rng.integers(256)
    (tmp_path / "y.ckpt").write_bytes(damaged)
    try:
      read_state_dict(tmp_path / "y.ckpt")
    except UserError:
      continue


def test_the_reference_checkpoint_is_read_as_torch_reads_it(shared):
  path = shared / "parity/vqgan_attn/vqgan.ckpt"
  tensors = read_state_dict(path)
  assert len(tensors) == 177 and sum(name.startswith("loss.") for name in tensors) == 22
  torch = pytest.importorskip("torch", reason="torch is not installed")
  for name, tensor in torch.load(path, weights_only=False)["state_dict"].items():
    np.testing.assert_array_equal(tensors[name], tensor.numpy(), err_msg=name)


@pytest.mark.parametrize("is_zip", [True, False])
def test_types_strides_and_shared_storages_are_those_of_torch(tmp_path, is_zip):
  torch = pytest.importorskip("torch", reason="torch is not installed")
  base = torch.arange(24.0).reshape(4, 6)
  saved = {
      "base": base,
      "turned": base.t(),
      "part": base[1:3, ::2],
      "parameter": torch.nn.Parameter(base),
      "empty": torch.zeros(0, 3),
      **{str(kind): base.to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16,
                                               torch.int64, torch.uint8, torch.bool)},
  }  # fmt: skip
  plain = [1, 2.5, None, True, "x", (1, 2), {3, 4}, b"yy", 10**30, {"a": {}}]
  torch.save(saved | {"plain": plain}, tmp_path / "x", _use_new_zipfile_serialization=is_zip)
  found = read_torch_file(tmp_path / "x")
  assert found.pop("plain") == plain
  for name, tensor in saved.items():
    assert str(tensor.dtype).removeprefix("torch.") == found[name].dtype.name
    expected = tensor.detach().to(torch.float64).numpy()
    np.testing.assert_array_equal(found[name].astype(np.float64), expected, err_msg=name)
  assert np.shares_memory(found["base"], found["turned"])


def test_torch_reads_what_is_written(tmp_path, tensors):
  torch = pytest.importorskip("torch", reason="torch is not installed")
  write_state_dict(tmp_path / "x.ckpt", tensors)
  content = io.BytesIO((tmp_path / "x.ckpt").read_bytes())
  found = torch.load(content, weights_only=True)["state_dict"]
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(found[name].numpy(), tensor)
