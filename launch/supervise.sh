#!/usr/bin/env bash
# Runs train on this host, and again after a crash or a preemption, from the last checkpoint.
#
#   bash launch/supervise.sh COMMAND --log=FILE [FLAGS] [-- --config=… --output=RUN [MORE OF TRAIN]]
#
#   run      starts train
#   status   says whether train runs, and the last line of its log
#   stop     has train write a checkpoint, and waits until it ended
#
# run ends with train's exit code after 0 (the run is complete), 2 (bad input) and 130 (Ctrl-C),
# and when it was told to stop itself: Ctrl-C, SIGTERM and SIGHUP are passed on to train.
#
#   flag          variable         meaning
#   --log=FILE    CHEXMIX_LOG      where train writes; on a local disk, one for each run (needed)
#   --tries=N     CHEXMIX_TRIES    gives up after N ends in a row without a new checkpoint (5)
#   --pause=S     CHEXMIX_PAUSE    seconds before it starts again (10)
#   --detach      CHEXMIX_DETACH   returns at once; train goes on when the session ends
#   --dry-run     CHEXMIX_DRY_RUN  only prints the command
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

child=
asked= # The signal that came for us.

note() {
  echo "$(date -u +%FT%TZ) $HOSTNAME supervise: $*"
}

pass_on() {
  asked=$1
  if [[ -n $child ]]; then kill -s "$asked" "$child" 2>/dev/null || true; fi
}

newest_checkpoint() {
  local folder newest=-1
  for folder in "$1"/checkpoints/*; do
    folder=${folder##*/}
    if [[ $folder =~ ^[0-9]+$ ]] && ((10#$folder > newest)); then newest=$((10#$folder)); fi
  done
  echo "$newest"
}

# Runs train once; its exit code is $code.
train_once() {
  set -m # Gives train a process group of its own: signals reach it from here only, and once.
  "$@" </dev/null &
  child=$!
  set +m
  if [[ -n $asked ]]; then pass_on "$asked"; fi
  while kill -0 "$child" 2>/dev/null; do # A signal ends the wait, not train.
    wait "$child" || true
  done
  code=0
  wait "$child" || code=$? # The shell still knows it.
  child=
}

# Runs train until there is no more to do, and leaves with its exit code.
supervise() {
  trap 'pass_on INT' INT
  trap 'pass_on TERM' TERM HUP
  echo "$BASHPID" >"${flag[log]}.pid"
  local failures=0 before code
  while true; do
    before=$(newest_checkpoint "$output")
    note "starts train: $(quote "$@")"
    train_once "$@"
    note "train ended with exit code $code."
    case $code in 0 | 2 | 130) exit "$code" ;; esac
    if [[ -n $asked ]]; then exit "$code"; fi
    failures=$((failures + 1))
    if [[ $(newest_checkpoint "$output") != "$before" ]]; then failures=0; fi
    if ((failures >= flag[tries])); then
      note "gives up: $failures ends in a row without a new checkpoint."
      exit "$code"
    fi
    sleep "${flag[pause]}" >/dev/null 2>&1 9>&- &
    wait $! || true # Unlike sleep in the foreground, a signal ends it.
    if [[ -n $asked ]]; then exit "$code"; fi
  done
}

# Whether a train that was started with this log still runs: it holds a lock on the log.
running() {
  [[ -e ${flag[log]} ]] && ! flock --nonblock "${flag[log]}" true
}

do_run() {
  need_number tries
  output=$(run_directory)
  local train=("$root/.venv/bin/python" -m chexmix_jax.train "${train_args[@]}")
  if on dry-run; then
    quote "${train[@]}"
    return
  fi
  [[ -x $root/.venv/bin/python ]] ||
    die "$root/.venv is not there; make it with 'bash launch/setup.sh'."
  { : >>"${flag[log]}"; } 2>/dev/null ||
    die "${flag[log]} cannot be written; name another file with --log=."
  exec 3>&- 9>>"${flag[log]}"
  flock --nonblock 9 ||
    die "$HOSTNAME is training already, with the log ${flag[log]}; stop it first."
  if on detach; then
    set -m
    supervise "${train[@]}" </dev/null >&9 2>&9 &
    echo "$HOSTNAME: train starts; its log is ${flag[log]}."
  else
    # No signal ends tee, as train could not write any more; it ends when nobody writes to it.
    exec > >(trap '' INT TERM HUP && exec tee --append --output-error=warn "${flag[log]}" 9>&-) 2>&1
    tee=$!
    trap 'exec >&- 2>&-; wait "$tee"' EXIT
    supervise "${train[@]}"
  fi
}

do_status() {
  if running; then echo "$HOSTNAME: running"; else echo "$HOSTNAME: not running"; fi
  if [[ -e ${flag[log]} ]]; then tail --lines=1 "${flag[log]}"; fi
}

do_stop() {
  if running; then
    kill -s TERM "$(cat "${flag[log]}.pid")" 2>/dev/null ||
      die "train runs on $HOSTNAME without its supervisor; end it there with kill."
    echo "$HOSTNAME: waits for train to write a checkpoint."
    while running; do sleep 1; done
  fi
  do_status
}

read_command "run status stop" "$@"
read_flags "log tries pause" "detach" "$@"
: "${flag[tries]:=5}" "${flag[pause]:=10}"
need log
"do_$command"
