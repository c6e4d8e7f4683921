"""A copy of the launch scripts, with stand-ins for the tools that they call."""

import os
import pathlib
import shutil
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Notes its name and arguments; then does what REPLIES says for it, as a shell script.
TOOL = r"""#!/usr/bin/env bash
printf '%s\0' "${0##*/}" "$@" $'\4' >>"$NOTES"
if [[ -e $REPLIES/${0##*/} ]]; then source "$REPLIES/${0##*/}"; fi
"""

# As train: each line of $CODES is an exit code, and the step of a checkpoint that is written first;
# `wait` waits for a signal.
TRAIN = r"""#!/usr/bin/env bash
printf '%s\0' train "$@" $'\4' >>"$NOTES"
read -r code step <"$CODES"
sed -i 1d "$CODES"
for word in "$@"; do if [[ $word == --output=* ]]; then output=${word#*=}; fi; done
if [[ -n $step ]]; then mkdir -p "$output/checkpoints/$step"; fi
if [[ $code == wait ]]; then
  trap 'echo saved; exit 143' TERM
  trap 'echo interrupted; exit 130' INT
  echo "waiting $$"
  for _ in {1..400}; do sleep 0.05; done
fi
exit "$code"
"""

SETUP = r"""#!/usr/bin/env bash
printf '%s\0' setup "$ACCELERATOR" $'\4' >>"$NOTES"
"""


class Clone:
  """A git repository with the scripts and a stand-in for .venv, and tools on PATH."""

  def __init__(self, folder):
    self.folder = folder
    self.root = folder / "a clone"
    self.replies = folder / "replies"
    self.notes = folder / "notes"
    self.codes = folder / "codes"
    self.replies.mkdir()
    (folder / "bin").mkdir()
    shutil.copytree(ROOT / "launch", self.root / "launch")
    (self.root / "launch" / "setup.sh").write_text(SETUP)
    (self.root / ".gitignore").write_text(".venv*/\nruns/\n")
    self.add_train(self.root)
    for name in ("gcloud", "kubectl", "sbatch", "scontrol", "sleep", "squeue", "srun", "xpk"):
      self.add_tool(name)
    # Whole seconds are hundredths, so that the tests are quick.
    self.reply("sleep", f'[[ $1 == *.* ]] || set "0.0$1"; {shutil.which("sleep")} "$1"')
    self.git("init", "--quiet")
    self.commit()

  def add_tool(self, name):
    path = self.folder / "bin" / name
    path.write_text(TOOL)
    path.chmod(0o755)

  def add_train(self, root):
    path = root / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TRAIN)
    path.chmod(0o755)

  def reply(self, tool, text):
    (self.replies / tool).write_text(text)

  def git(self, *arguments):
    done = subprocess.run(
        ["git", "-C", self.root, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()

  def commit(self):
    self.git("add", "--all")
    self.git("commit", "--quiet", "--message=a")
    return self.git("rev-parse", "HEAD")

  def environment(self, **more):
    return {
        "PATH": f"{self.folder / 'bin'}:{os.defpath}",
        "HOME": str(self.folder),
        "TMPDIR": str(self.folder),
        "NOTES": str(self.notes),
        "REPLIES": str(self.replies),
        "CODES": str(self.codes),
        **more,
    }

  def run(self, script, *arguments, **environment):
    """Return code, standard output and standard error; called in the folder above the clone."""
    self.notes.write_text("")
    done = subprocess.run(
        ["bash", self.root / "launch" / script, *arguments],
        cwd=self.folder,
        env=self.environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr

  def start(self, script, *arguments):
    """Starts a script as a terminal would: in a group of its own, which Ctrl-C reaches."""
    self.notes.write_text("")
    return subprocess.Popen(
        ["env", "--default-signal=INT,TERM,HUP", "bash", self.root / "launch" / script, *arguments],
        cwd=self.folder,
        env=self.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

  def called(self, *tools):
    """What was called, in order: lists of words; of all tools but sleep, or of those named."""
    calls = [call.split("\0")[:-1] for call in self.notes.read_text().split("\4\0")[:-1]]
    return [call for call in calls if (call[0] in tools if tools else call[0] != "sleep")]

  def set_codes(self, *lines):
    self.codes.write_text("".join(f"{line}\n" for line in lines))


def wait_until(condition):
  """Waits, for a minute at most, until condition() is true."""
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


@pytest.fixture
def clone(tmp_path):
  for tool in ("flock", "git"):
    if not shutil.which(tool, path=os.defpath):
      pytest.skip(f"needs {tool}, as Debian and Ubuntu have it")
  return Clone(tmp_path)


@pytest.fixture
def until():
  return wait_until
