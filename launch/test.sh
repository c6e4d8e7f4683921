#!/usr/bin/env bash
# Sets up .venv, then runs the linter, the type checker and the tests; arguments go to pytest.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh test
# The programs are small: to optimise them fully takes longer than they run.
export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
XLA_FLAGS+=" --xla_llvm_disable_expensive_passes=true"
if .venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
  XLA_FLAGS+=" --xla_cpu_use_fusion_emitters=false" # jax 0.11 does not know this flag any more.
fi
unset PYTHONDONTWRITEBYTECODE # Many tests start Python, and jax takes seconds to compile anew.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}
.venv/bin/ruff check
.venv/bin/mypy
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
