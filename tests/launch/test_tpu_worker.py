"""What is done on each worker of a slice, over stand-ins for its system."""

import os

import pytest

# Of a version below 3.11 where $OLD is 1; its pip installs a stand-in for uv.
PYTHON = r"""
case "$1 $2" in
  "-c "*) exit "$OLD" ;;
  "-m pip")
    mkdir -p "$HOME/.local/bin"
    printf '#!/bin/sh\necho uv "$@" >>"$HOME/uv"\n[ "$2" = install ] || echo /uv/python3.12\n' \
      >"$HOME/.local/bin/uv"
    chmod +x "$HOME/.local/bin/uv"
    ;;
esac
"""


@pytest.fixture
def worker(clone):
  """The clone as a worker, without a Python that is new enough, gcsfuse or a bucket."""
  for name in ("curl", "lsb_release", "mountpoint", "python3", "sudo"):
    clone.add_tool(name)
  (clone.root / "launch" / "setup.sh").write_text(
      "printf '%s\\0' setup \"$ACCELERATOR\" \"${PYTHON:-}\" $'\\4' >>\"$NOTES\"\n"
  )
  clone.reply("python3", PYTHON)
  clone.reply("mountpoint", "exit 1")
  clone.reply("lsb_release", "echo jammy")
  clone.reply("curl", "echo the key")
  clone.reply("sudo", 'if [[ $1 == tee ]]; then cat >"$HOME/${@: -1:1}.tee"; fi')
  (clone.folder / "etc" / "apt" / "sources.list.d").mkdir(parents=True)
  (clone.folder / "usr" / "share" / "keyrings").mkdir(parents=True)
  return clone


def test_a_worker_with_an_old_python_gets_a_newer_one(worker):
  assert worker.run("tpu_worker.sh", OLD="1")[0] == 0
  assert worker.called("setup") == [["setup", "tpu", "/uv/python3.12"]]
  assert worker.called("sudo") == []
  assert (worker.folder / "uv").read_text() == (
      "uv python install --quiet 3.12\nuv python find --system --managed-python 3.12\n"
  )


def test_a_worker_mounts_the_bucket_for_good(worker):
  assert worker.run("tpu_worker.sh", "b", "/mnt/c", OLD="0")[0] == 0
  assert worker.called("setup") == [["setup", "tpu", ""]]
  done = [call[1:] for call in worker.called("sudo")]
  key = "/usr/share/keyrings/cloud.google.asc"
  apt = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=600"]
  assert done == [
      ["tee", key],
      ["tee", "/etc/apt/sources.list.d/gcsfuse.list"],
      [*apt, "update"],
      [*apt, "install", "gcsfuse"],
      ["mkdir", "-p", "/mnt/c"],
      ["sed", "-i", r"\| /mnt/c gcsfuse |d", "/etc/fstab"],
      ["tee", "-a", "/etc/fstab"],
      ["mount", "/mnt/c"],
  ]
  assert (worker.folder / "etc" / "fstab.tee").read_text() == (
      "b /mnt/c gcsfuse rw,_netdev,allow_other,"
      f"uid={os.getuid()},gid={os.getgid()},implicit_dirs,"
      "metadata_cache_ttl_secs=0,metadata_cache_negative_ttl_secs=0 0 0\n"
  )
  source = worker.folder / "etc" / "apt" / "sources.list.d" / "gcsfuse.list.tee"
  assert source.read_text() == (
      f"deb [signed-by={key}] https://packages.cloud.google.com/apt gcsfuse-jammy main\n"
  )


def test_a_bucket_that_is_mounted_is_left_alone(worker):
  worker.reply("mountpoint", "exit 0")
  assert worker.run("tpu_worker.sh", "b", "/mnt/c", OLD="0")[0] == 0
  assert worker.called("sudo") == []
