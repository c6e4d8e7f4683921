#!/usr/bin/env bash
# Trains on all devices of this machine: sets up .venv, then starts train, again after a crash.
#
#   bash launch/workstation.sh [FLAGS] -- --config=… --output=RUN [MORE ARGUMENTS OF TRAIN]
#
# Ctrl-C goes to train. Paths are relative to where it is called.
#
#   flag             variable             meaning
#   --accelerator=A  CHEXMIX_ACCELERATOR  cpu, cuda13 (default) or tpu
#   --log=FILE       CHEXMIX_LOG          where train writes (default RUN.log)
#   --tries=N        CHEXMIX_TRIES        gives up after N ends without a new checkpoint (5)
#   --dry-run        CHEXMIX_DRY_RUN      only prints the commands
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_flags "accelerator log tries" "" "$@"
: "${flag[accelerator]:=cuda13}" "${flag[tries]:=5}"
need_number tries
output=$(run_directory)
log=${flag[log]:-${output%/}.log}
cache=${JAX_COMPILATION_CACHE_DIR:-$root/.jax_cache} # Compiled once, not at every start.

run env "ACCELERATOR=${flag[accelerator]}" bash "$root/launch/setup.sh"
run mkdir -p "$(dirname "$log")"
run env "JAX_COMPILATION_CACHE_DIR=$cache" bash "$root/launch/supervise.sh" run "--log=$log" \
  "--tries=${flag[tries]}" -- "${train_args[@]}"
