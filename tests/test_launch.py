"""The launch scripts, over a stand-in for Python that only notes what it is asked to do."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Knows -c (which interpreter am I, is ensurepip there), -m venv and -m pip; notes everything else.
# The stand-in for uv that its pip installs notes its arguments, and fails while $FAIL is set.
PYTHON = r"""#!/usr/bin/env bash
set -eu
here=$(dirname "$(readlink -f "$0")")
case "$1 $2" in
  "-c import ensurepip") exit 0 ;;
  "-c "*) cat "$here/interpreter" ;;
  "-m venv")
    echo "venv $here" >>"$NOTES"
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$here/interpreter" "$3/bin/"
    ;;
  "-m pip")
    cat >"$here/uv" <<'UV'
#!/usr/bin/env bash
echo "uv ${@: 6}" >>"$NOTES"
[[ -z ${FAIL:-} ]] || { echo "no network" >&2; exit 1; }
UV
    chmod +x "$here/uv"
    ;;
  *) printf '%s\n' "$PWD" "$JAX_COMPILATION_CACHE_DIR" "$@" >>"$NOTES" ;;
esac
"""


class Machine:
  """A copy of the scripts in a folder with a space, and Pythons that can be found on PATH."""

  def __init__(self, folder):
    self.root = folder / "a clone"
    self.notes = folder / "notes"
    self.python = self.add_python(folder / "bin" / "python3.11")
    shutil.copytree(ROOT / "launch", self.root / "launch")
    for name in ("requirements.txt", "pyproject.toml"):
      shutil.copy(ROOT / name, self.root)

  def add_python(self, path):
    path.parent.mkdir(exist_ok=True)
    path.write_text(PYTHON)
    path.chmod(0o755)
    (path.parent / "interpreter").write_text(f"{path}\n")
    return path

  def run(self, script, *arguments, cwd=None, **environment):
    """Return code, standard error and what the Pythons noted."""
    self.notes.write_text("")
    done = subprocess.run(
        ["bash", self.root / "launch" / script, *arguments],
        cwd=cwd or self.root,
        env={
            "PATH": f"{self.python.parent}:{os.defpath}",
            "NOTES": str(self.notes),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr, self.notes.read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
  if not shutil.which("flock", path=os.defpath):
    pytest.skip("needs flock, as Debian and Ubuntu have it")
  return Machine(tmp_path)


def made(machine, *packages, folder=None):
  """Notes of a set-up from nothing."""
  return [f"venv {folder or machine.python.parent}", installed(machine, *packages)]


def installed(machine, *packages, extra=""):
  """The note of an installation."""
  return " ".join(["uv --editable", f"{machine.root}{extra}", *packages])


def test_set_up_is_done_once(machine):
  assert machine.run("setup.sh") == (0, "", made(machine))
  assert machine.run("setup.sh") == (0, "", [])
  assert machine.run("setup.sh", cwd="/") == (0, "", [])


def test_the_tests_packages_are_added_and_stay(machine):
  machine.run("setup.sh")
  with_tests = [installed(machine, extra="[test]")]
  assert machine.run("setup.sh", "test") == (0, "", with_tests)
  assert machine.run("setup.sh", "test") == (0, "", [])
  assert machine.run("setup.sh") == (0, "", [])
  (machine.root / "requirements.txt").write_text("numpy==2.4.6\n")
  assert machine.run("setup.sh") == (0, "", with_tests)
  assert machine.run("setup.sh", "test") == (0, "", [])


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml", "launch/setup.sh"])
def test_a_changed_file_updates_what_is_there(machine, name):
  machine.run("setup.sh")
  with (machine.root / name).open("a") as file:
    file.write("\n")
  assert machine.run("setup.sh") == (0, "", [installed(machine)])
  assert machine.run("setup.sh") == (0, "", [])


def test_a_set_up_that_was_cut_off_starts_from_nothing(machine):
  code, text, _ = machine.run("setup.sh", FAIL="1")
  assert code == 2
  assert text.splitlines()[0] == "no network" and "start again" in text
  assert machine.run("setup.sh") == (0, "", made(machine))
  assert machine.run("setup.sh") == (0, "", [])


def test_another_python_makes_it_anew_and_is_kept(machine, tmp_path):
  machine.run("setup.sh")
  other = machine.add_python(tmp_path / "other" / "python3.12")
  assert machine.run("setup.sh", PYTHON=str(other)) == (0, "", made(machine, folder=other.parent))
  assert machine.run("setup.sh") == (0, "", [])
  assert machine.run("setup.sh", PYTHON="python3.11") == (0, "", made(machine))


def test_an_accelerator_makes_it_anew_and_is_kept(machine):
  machine.run("setup.sh")
  assert machine.run("setup.sh", ACCELERATOR="cuda13") == (0, "", made(machine, "jax[cuda13]"))
  assert machine.run("setup.sh") == (0, "", [])
  assert machine.run("setup.sh", "test")[2] == [installed(machine, "jax[cuda13]", extra="[test]")]
  assert machine.run("setup.sh", ACCELERATOR="cpu")[2] == [
      f"venv {machine.python.parent}", installed(machine, extra="[test]")
  ]  # fmt: skip


def test_a_moved_clone_is_set_up_anew(machine):
  machine.run("setup.sh")
  machine.root = machine.root.rename(machine.root.with_name("moved"))
  assert machine.run("setup.sh") == (0, "", made(machine))


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {"ACCELERATOR": "gpu"}, "ACCELERATOR=gpu must be cpu, cuda13 or tpu."),
        (("tests",), {}, "launch/setup.sh takes the word test, or nothing."),
        ((), {"PYTHON": "nothing"},
         "PYTHON=nothing is not a Python of 3.11 or newer; name one that is."),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(machine, arguments, environment, message):
  code, text, notes = machine.run("setup.sh", *arguments, **environment)
  assert (code, text, notes) == (2, f"error: {message}\n", [])
  assert not (machine.root / ".venv").exists()


def test_a_python_that_does_not_run_is_passed_over(machine):
  # As pyenv's shim does for a version that is not in force, python3.12 is there and does not run.
  broken = machine.python.with_name("python3.12")
  broken.write_text("#!/bin/sh\nexit 127\n")
  broken.chmod(0o755)
  assert machine.run("setup.sh") == (0, "", made(machine))


def test_without_any_python_the_mend_is_named(machine, tmp_path):
  tools = tmp_path / "tools"
  tools.mkdir()
  for name in ("bash", "cat", "dirname", "flock", "sha256sum"):
    (tools / name).symlink_to(shutil.which(name, path=os.defpath))
  code, text, _ = machine.run("setup.sh", PATH=str(tools))
  assert code == 2
  assert text.startswith("error: No Python of 3.11 or newer was found; install one")


def test_quickstart_passes_its_arguments_from_where_it_is_called(machine, tmp_path):
  arguments = ["--data", "r2gen:some where/a.json", "--seed=1"]
  code, text, notes = machine.run("quickstart.sh", *arguments, cwd=tmp_path)
  assert (code, text) == (0, "")
  assert notes == [
      *made(machine), str(tmp_path), f"{machine.root}/.jax_cache", "-m", "chexmix_jax.quickstart",
      *arguments,
  ]  # fmt: skip


def test_a_set_up_that_fails_stops_quickstart_and_the_tests(machine):
  for script in ("quickstart.sh", "test.sh"):
    code, text, notes = machine.run(script, FAIL="1")
    assert code == 2 and "start again" in text
    assert len(notes) == 2


def test_the_scripts_can_be_run():
  for name in ("launch/setup.sh", "launch/quickstart.sh", "launch/test.sh", ".ci/run"):
    assert os.access(ROOT / name, os.X_OK), name
