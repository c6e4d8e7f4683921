#!/usr/bin/env bash
# Sets up .venv, then runs the whole main job; arguments go to python -m chexmix_jax.quickstart.
# Paths among them, and the default output runs/quickstart, are relative to where it is called.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/launch/setup.sh"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$root/.jax_cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}
exec "$root/.venv/bin/python" -m chexmix_jax.quickstart "$@"
