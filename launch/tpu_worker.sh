#!/usr/bin/env bash
# What launch/tpu.sh install runs on every worker: sets up .venv; mounts the bucket $1 as folder $2,
# where they are given.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bucket=${1:-} folder=${2:-}

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  # Images of TPU VMs on Ubuntu 22.04 come with Python 3.10.
  python3 -m pip install --quiet --user uv==0.13.9
  uv=$HOME/.local/bin/uv
  "$uv" python install --quiet 3.12
  PYTHON=$("$uv" python find --system --managed-python 3.12)
  export PYTHON
fi
ACCELERATOR=tpu bash "$root/launch/setup.sh"

if [[ -z $bucket ]] || mountpoint --quiet "$folder"; then exit 0; fi

apt=(sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600)
if ! command -v gcsfuse >/dev/null; then
  source=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl --fail --silent --show-error "$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  "${apt[@]}" update
  "${apt[@]}" install gcsfuse
fi
# In fstab, as a network file system, so that it comes back after a restart, and goes only after
# train has ended. What another worker wrote must be seen at once: no cache of names.
options=rw,_netdev,allow_other,uid=$(id --user),gid=$(id --group),implicit_dirs
options+=,metadata_cache_ttl_secs=0,metadata_cache_negative_ttl_secs=0
sudo mkdir -p "$folder"
sudo sed -i "\\| $folder gcsfuse |d" /etc/fstab
echo "$bucket $folder gcsfuse $options 0 0" | sudo tee -a /etc/fstab >/dev/null
sudo mount "$folder"
