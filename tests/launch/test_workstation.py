"""One machine: set-up, then the loop that starts train again."""

import os
import shlex
import signal

import pytest

TRAIN = ["--config=configs/c.py", "--output=runs/a run/", "--config.x=1 2"]
LOG = "runs/a run.log"


def test_a_dry_run_prints_the_commands_and_does_nothing(clone):
  code, text, error = clone.run("workstation.sh", "--dry-run", "--tries=3", "--", *TRAIN)
  assert (code, error) == (0, "")
  launch = f"{clone.root}/launch"
  assert [shlex.split(line) for line in text.splitlines()] == [
      ["env", "ACCELERATOR=cuda13", "bash", f"{launch}/setup.sh"],
      ["mkdir", "-p", "runs"],
      ["env", f"JAX_COMPILATION_CACHE_DIR={clone.root}/.jax_cache", "bash",
       f"{launch}/supervise.sh", "run", f"--log={LOG}", "--tries=3", "--", *TRAIN],
  ]  # fmt: skip
  assert clone.called() == []
  assert list(clone.folder.glob("runs")) == []


def test_train_is_set_up_and_started_until_it_is_complete(clone):
  clone.set_codes(1, 0)
  code, text, _ = clone.run("workstation.sh", "--accelerator=cpu", "--", *TRAIN)
  assert code == 0
  train = ["train", "-m", "chexmix_jax.train", *TRAIN]
  assert clone.called() == [["setup", "cpu"], train, train]
  assert (clone.folder / LOG).read_text() == text


def test_ctrl_c_goes_to_train_and_ends_everything(clone, until):
  clone.set_codes("wait", 0)
  script = clone.start("workstation.sh", "--", *TRAIN)
  log = clone.folder / LOG
  until(lambda: log.exists() and "waiting" in log.read_text())
  os.killpg(script.pid, signal.SIGINT)
  text, _ = script.communicate()
  assert script.returncode == 130
  assert "interrupted" in text
  assert len(clone.called("train")) == 1


def test_a_set_up_that_fails_starts_nothing(clone):
  (clone.root / "launch" / "setup.sh").write_text("exit 2\n")
  assert clone.run("workstation.sh", "--", *TRAIN)[0] == 2
  assert clone.called() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "launch/workstation.sh finds no --output=RUN among the arguments of train; put them"
         " after --, with --config=… and --output=…."),
        (TRAIN, "launch/workstation.sh does not take '--config=configs/c.py'; 'bash"
         " launch/workstation.sh --help' says what it takes (values follow =, arguments of train"
         " follow --)."),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(clone, arguments, message):
  assert clone.run("workstation.sh", *arguments) == (2, "", f"error: {message}\n")
  assert clone.called() == []
