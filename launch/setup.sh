#!/usr/bin/env bash
# Makes .venv with the pinned packages; does nothing where it is there and nothing changed.
#
#   [PYTHON=python3.12] [ACCELERATOR=cpu|cuda13|tpu] bash launch/setup.sh [test]
#
# PYTHON is the interpreter (default: that of .venv, else the newest of python3.12, python3.11 and
# python3), ACCELERATOR picks the jax (default: that of .venv, else cpu), `test` adds what
# launch/test.sh needs. Another interpreter or accelerator makes .venv anew.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/chexmix-setup # What .venv was made for; there only while .venv is whole.

die() {
  echo "error: $*" >&2
  exit 2
}

# The file of the interpreter $1, or of the one that the .venv of $1 stands on; nothing where it is
# older than 3.11 or does not run.
interpreter() {
  "$1" -c 'import os, sys
print(os.path.realpath(sys._base_executable) if sys.version_info >= (3, 11) else "")' 2>/dev/null ||
    true
}

# Makes .venv from the interpreter $1, with uv in it, which installs everything else.
make_venv() {
  local pip=(-m pip) wheel=$venv/pip-26.0-py3-none-any.whl
  if "$1" -c 'import ensurepip' 2>/dev/null; then
    "$1" -m venv "$venv" || return
  else # Debian and Ubuntu leave it out of python3; pip also runs from its own file.
    "$1" -m venv --without-pip "$venv" || return
    "$venv/bin/python" - "$wheel" <<'FETCH' || return
import hashlib, pathlib, sys, urllib.request
file = pathlib.Path(sys.argv[1])
folder = "69/00/5ac7aa77688ec4d34148b423d34dc0c9bc4febe0d872a9a1ad9860b2f6f1"
url = f"https://files.pythonhosted.org/packages/{folder}/{file.name}"
try:
  with urllib.request.urlopen(url, timeout=60) as answer:
    wheel = answer.read()
except OSError as error:
  sys.exit(f"{url} cannot be fetched ({error}).")
expected = "98436feffb9e31bc9339cf369fd55d3331b1580b6a6f1173bacacddcf9c34754"
if hashlib.sha256(wheel).hexdigest() != expected:
  sys.exit(f"{url} is not the file that was expected.")
file.write_bytes(wheel)
FETCH
    pip=("$wheel/pip")
  fi
  "$venv/bin/python" "${pip[@]}" install -qq --no-input --disable-pip-version-check uv==0.13.9
}

extra=${1:-}
[[ $# -le 1 && $extra =~ ^(test)?$ ]] || die "launch/setup.sh takes the word test, or nothing."

# A second set-up at the same time waits here for the first.
exec 9<"${BASH_SOURCE[0]}"
flock 9

was=("" "" "" "" "")
if [[ -f $stamp ]]; then mapfile -t was <"$stamp"; fi

if [[ -n ${PYTHON:-} ]]; then
  base=$(interpreter "$PYTHON")
  [[ -n $base ]] || die "PYTHON=$PYTHON is not a Python of 3.11 or newer; name one that is."
else
  for candidate in "$venv/bin/python" python3.12 python3.11 python3; do
    base=$(interpreter "$candidate")
    [[ -z $base ]] || break
  done
  [[ -n $base ]] || die "No Python of 3.11 or newer was found; install one or name it with PYTHON=."
fi

accelerator=${ACCELERATOR:-${was[1]:-cpu}}
case $accelerator in
  cpu) packages=() ;;
  cuda13 | tpu) packages=("jax[$accelerator]") ;; # The pins give its version.
  *) die "ACCELERATOR=$accelerator must be cpu, cuda13 or tpu." ;;
esac

files=$(cat "$root/requirements.txt" "$root/pyproject.toml" "$root/launch/setup.sh" | sha256sum)
remake=false
[[ "${was[*]:0:3}" == "$base $accelerator $root" ]] || remake=true
extra=${extra:-${was[4]}} # The tests' packages, once there, stay.
if [[ $remake == false && ${was[3]} == "$files" && ${was[4]} == "$extra" ]]; then exit 0; fi

start=$SECONDS
rm -f "$stamp"
if [[ $remake == true ]]; then
  echo "Making .venv with $base for $accelerator; this takes about a minute."
  rm -rf "$venv"
  make_venv "$base" || die ".venv could not be made, for the reason above; mend the network" \
    "or run 'apt install python3-venv', then start again."
else
  echo "Bringing .venv up to date."
fi
quiet=(--quiet)
if [[ -t 2 ]]; then quiet=(); fi # On a terminal uv shows how far it is.
"$venv/bin/uv" pip install "${quiet[@]}" --python "$venv/bin/python" \
  --editable "$root${extra:+[$extra]}" "${packages[@]}" ||
  die "The packages could not be installed, for the reason above; mend it, then start again."
printf '%s\n' "$base" "$accelerator" "$root" "$files" "$extra" >"$stamp"
echo "Set up .venv in $((SECONDS - start)) s."
