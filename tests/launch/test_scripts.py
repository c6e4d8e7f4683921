"""What holds for all scripts."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ["gke.sh", "slurm.sh", "supervise.sh", "tpu.sh", "workstation.sh"]


def test_shellcheck_finds_nothing():
  done = subprocess.run(
      [pathlib.Path(sys.executable).with_name("shellcheck"),
       *sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_every_flag_and_its_variable(clone, name):
  code, text, _ = clone.run(name, "--help")
  assert code == 0
  rows = re.findall(r"^  --([a-z-]+)(?:=\w+)? +CHEXMIX_(\w+) ", text, re.MULTILINE)
  assert all(flag.upper().replace("-", "_") == variable for flag, variable in rows)
  source = (ROOT / "launch" / name).read_text().replace("\\\n", "")
  taken = re.search(r'^read_flags "([^"]*)" +"([^"]*)"', source, re.MULTILINE)
  flags = [*taken[1].split(), *taken[2].split(), "dry-run"]
  assert sorted(flag for flag, _ in rows) == sorted(flags)
  if "COMMAND" in text:
    assert clone.run(name, "run", "--help")[1] == text


@pytest.mark.parametrize("name", [*SCRIPTS, "tpu_worker.sh"])
def test_the_scripts_can_be_run(name):
  assert os.access(ROOT / "launch" / name, os.X_OK)
