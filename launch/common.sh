# shellcheck shell=bash
# Sourced by the launch scripts: errors, commands and flags, dry runs, the repository as an archive.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
script=launch/$(basename "$0")
declare -A flag=() # What the flags say, by their names.
command=           # The first argument, of a script that has commands.
train_args=()      # What follows --.
place=()           # Zone and project, where they are given.
exec 3>&1          # Dry runs are seen even where a command's output is caught.

die() {
  echo "error: $*" >&2
  exit 2
}

# Prints the comment that the script begins with.
usage() {
  sed -n '2,${/^#/!q; s/^# \{0,1\}//p}' "$0"
  exit 0
}

# Takes the first argument, which must be one of the words in $1, as the command.
read_command() {
  command=${2:-}
  if [[ $command == --help ]]; then usage; fi
  [[ -n $command && " $1 " == *" $command "* ]] ||
    die "$script takes one of these: ${1// /, }; 'bash $script --help' says more."
}

# Reads flags: $1 names those with a value, $2 the switches, the rest is the command line. A flag
# that is not given comes from its variable: --runtime-version from CHEXMIX_RUNTIME_VERSION; a
# switch is on at 1.
read_flags() {
  local valued=" $1 " switches=" $2 dry-run " name variable
  shift 2
  if [[ -n $command ]]; then shift; fi
  for name in $valued $switches; do
    variable=$(variable_of "$name")
    flag[$name]=${!variable:-}
  done
  while (($#)); do
    name=${1%%=*}
    name=${name#--}
    if [[ $1 == --help ]]; then
      usage
    elif [[ $1 == -- ]]; then
      train_args=("${@:2}")
      break
    elif [[ $1 == --*=* && $valued == *" $name "* ]]; then
      flag[$name]=${1#*=}
    elif [[ $1 == "--$name" && $switches == *" $name "* ]]; then
      flag[$name]=1
    else
      die "$script does not take '$1'; 'bash $script --help' says what it takes" \
        "(values follow =, arguments of train follow --)."
    fi
    shift
  done
  for name in zone project; do
    if [[ -n ${flag[$name]:-} ]]; then place+=("--$name=${flag[$name]}"); fi
  done
}

variable_of() {
  local name=${1^^}
  echo "CHEXMIX_${name//-/_}"
}

# Whether the switch $1 is on.
on() {
  [[ ${flag[$1]} == 1 ]]
}

# Stops where one of the flags $@ has no value.
need() {
  local name
  for name in "$@"; do
    [[ -n ${flag[$name]} ]] ||
      die "$script lacks --$name; give --$name=… or set $(variable_of "$name")."
  done
}

# Stops where one of the flags $@ is not a whole number from 1.
need_number() {
  local name
  for name in "$@"; do
    [[ ${flag[$name]} =~ ^[1-9][0-9]*$ ]] ||
      die "--$name=${flag[$name]} must be a whole number from 1."
  done
}

# Prints the run directory: the value of --output= among the arguments of train.
run_directory() {
  local argument
  for argument in "${train_args[@]}"; do
    if [[ $argument == --output=?* ]]; then
      echo "${argument#*=}"
      return
    fi
  done
  die "$script finds no --output=RUN among the arguments of train; put them after --, with" \
    "--config=… and --output=…."
}

# Stops where several hosts would not find the run directory.
need_shared_run_directory() {
  local output
  output=$(run_directory)
  [[ $output == /* ]] ||
    die "--output=$output must begin with /; name a folder that all hosts see."
}

# Prints the words $@ on one line that a shell reads as the same words.
quote() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[a-zA-Z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

# Runs a command; on --dry-run prints it instead.
run() {
  if on dry-run; then quote "$@" >&3; else "$@"; fi
}

# Packs the commit that is checked out into the file $archive, so that all hosts get the same code.
make_archive() {
  local commit changes
  commit=$(git -C "$root" rev-parse HEAD 2>/dev/null) ||
    die "$root is not a git repository; clone it with git, so that it is known what the hosts run."
  changes=$(git -C "$root" status --porcelain)
  [[ -z $changes ]] || on allow-dirty ||
    die "$root has changes that are not committed; commit them, or leave them out" \
      "with --allow-dirty."
  archive=${TMPDIR:-/tmp}/chexmix_jax-$commit.tar.gz
  run git -C "$root" archive --format=tar.gz "--output=$archive" "$commit"
}
