#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs (v5e, v5p, v6e), with gcloud.
#
#   bash launch/tpu.sh COMMAND [FLAGS] [-- --config=… --output=/RUN [MORE ARGUMENTS OF TRAIN]]
#
#   create   asks for the slice, and waits until it is there
#   install  copies this commit to all workers, sets up .venv and mounts the bucket there
#   run      starts train on all workers, apart from this session; it starts again after a crash
#   logs     follows the log of train on a worker
#   status   says how the slice is, and train on each worker
#   stop     has train write a checkpoint, and waits until it ended
#   resume   after a preemption: deletes what is left of the slice, then create, install and run
#   delete   deletes the slice
#
#   flag                  variable                  meaning
#   --name=NAME           CHEXMIX_NAME              of the slice (always needed)
#   --zone=ZONE           CHEXMIX_ZONE              (default: gcloud's)
#   --project=ID          CHEXMIX_PROJECT           (default: gcloud's)
#   --accelerator-type=T  CHEXMIX_ACCELERATOR_TYPE  such as v5litepod-256 (for create, resume)
#   --runtime-version=V   CHEXMIX_RUNTIME_VERSION   such as v2-alpha-tpuv5-lite (for create, resume)
#   --queued              CHEXMIX_QUEUED            as a queued resource, in every command
#   --spot                CHEXMIX_SPOT              spot VMs (for create, resume)
#   --bucket=NAME         CHEXMIX_BUCKET            bucket to mount (for install, resume)
#   --mount=FOLDER        CHEXMIX_MOUNT             where it is mounted (/mnt/chexmix)
#   --allow-dirty         CHEXMIX_ALLOW_DIRTY       leaves changes out that are not committed
#   --tries=N             CHEXMIX_TRIES             train's ends in a row without a checkpoint (5)
#   --worker=I            CHEXMIX_WORKER            whose log is followed, or all (0)
#   --dry-run             CHEXMIX_DRY_RUN           only prints the commands
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tpus() {
  run gcloud compute tpus "$@" "${place[@]}"
}

on_workers() {
  tpus tpu-vm ssh "${flag[name]}" "--worker=${2:-all}" "--command=$1"
}

# State of the slice or, if it is queued, of the request for it; fails where there is none.
state() {
  if on queued; then
    tpus queued-resources describe "${flag[name]}" "--format=value(state.state)"
  else
    tpus tpu-vm describe "${flag[name]}" "--format=value(state)"
  fi
}

check_create() {
  need accelerator-type runtime-version
}

do_create() {
  check_create
  local options=("--accelerator-type=${flag[accelerator-type]}")
  if on spot; then options+=(--spot); fi
  if on queued; then
    tpus queued-resources create "${flag[name]}" "--node-id=${flag[name]}" \
      "--runtime-version=${flag[runtime-version]}" "${options[@]}"
    wait_for_slice
  else
    tpus tpu-vm create "${flag[name]}" "--version=${flag[runtime-version]}" "${options[@]}"
  fi
}

wait_for_slice() {
  local now
  if on dry-run; then echo "# Again every 30 s, until it says ACTIVE:" >&3; fi
  while true; do
    now=$(state)
    case $now in
      FAILED | SUSPENDING | SUSPENDED)
        die "the request ${flag[name]} is $now; 'bash $script resume' asks again."
        ;;
    esac
    if on dry-run || [[ $now == ACTIVE ]]; then return; fi
    echo "${flag[name]}: $now. Ctrl-C ends the waiting, not the request."
    sleep 30
  done
}

do_install() {
  make_archive
  install_archive
}

install_archive() {
  local here=chexmix_jax setup=(bash chexmix_jax/launch/tpu_worker.sh) file=${archive##*/}
  if [[ -n ${flag[bucket]} ]]; then setup+=("${flag[bucket]}" "${flag[mount]}"); fi
  tpus tpu-vm scp "$archive" "${flag[name]}:" --worker=all
  # Files that this commit no longer has must go: all hosts run the same code.
  on_workers "flock --nonblock train.log true || \
{ echo \"error: \$(hostname) is training; stop it first.\" >&2; exit 2; }; \
mkdir -p $here && find $here -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + && \
tar -xzf $file -C $here && rm $file && $(quote "${setup[@]}")"
}

check_run() {
  need_number tries
  need_shared_run_directory
}

do_run() {
  check_run
  on_workers "cd chexmix_jax && $(quote bash launch/supervise.sh run --detach --log=../train.log \
    "--tries=${flag[tries]}" -- --distributed "${train_args[@]}")"
}

do_logs() {
  on_workers "tail --lines=50 --follow=name train.log | sed --unbuffered \"s/^/\$(hostname): /\"" \
    "${flag[worker]}"
}

do_status() {
  local now
  now=$(state)
  on dry-run || echo "${flag[name]}: $now"
  if on dry-run || [[ $now == READY || $now == ACTIVE ]]; then
    on_workers "bash chexmix_jax/launch/supervise.sh status --log=train.log"
  fi
}

do_stop() {
  on_workers "bash chexmix_jax/launch/supervise.sh stop --log=train.log"
}

do_resume() {
  check_create
  check_run
  make_archive # Whatever would stop here should, before the slice costs money.
  local now
  now=$(state 2>/dev/null) || now=
  case $now in
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) do_delete --quiet ;;
    "") if on dry-run; then do_delete --quiet; fi ;; # It is gone already.
    *)
      die "${flag[name]} is $now, so not dead; wait, or start train with 'bash $script run'."
      ;;
  esac
  do_create
  install_archive
  do_run
}

do_delete() {
  if on queued; then
    tpus queued-resources delete "${flag[name]}" --force "$@"
  else
    tpus tpu-vm delete "${flag[name]}" "$@"
  fi
}

read_command "create install run logs status stop resume delete" "$@"
read_flags "name zone project accelerator-type runtime-version bucket mount tries worker" \
  "queued spot allow-dirty" "$@"
: "${flag[mount]:=/mnt/chexmix}" "${flag[tries]:=5}" "${flag[worker]:=0}"
need name
"do_$command"
