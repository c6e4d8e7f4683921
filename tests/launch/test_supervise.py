"""The loop that starts train again, over a stand-in for train."""

import os
import re
import signal

import pytest

TRAIN = ["--config=c.py", "--output=a run", "--config.x=1 2"]


def supervise(clone, *flags):
  return clone.run("supervise.sh", "run", "--log=log", "--pause=0", *flags, "--", *TRAIN)


def starts(clone):
  return clone.called("train")


def test_it_starts_again_after_a_crash_and_a_preemption_and_ends_when_the_run_is_complete(clone):
  clone.set_codes(1, 143, 0)
  assert supervise(clone)[0] == 0
  assert starts(clone) == [["train", "-m", "chexmix_jax.train", *TRAIN]] * 3
  log = (clone.folder / "log").read_text()
  assert log.count("starts train") == 3
  assert "train ended with exit code 143." in log


@pytest.mark.parametrize("code", [0, 2, 130])
def test_it_does_not_start_again_after_the_end_bad_input_or_ctrl_c(clone, code):
  clone.set_codes(code, 0)
  assert supervise(clone)[0] == code
  assert len(starts(clone)) == 1


def test_it_gives_up_after_some_ends_without_a_new_checkpoint(clone):
  clone.set_codes(1, 1, 1, 1)
  code, text, _ = supervise(clone, "--tries=3")
  assert code == 1
  assert len(starts(clone)) == 3
  assert "gives up: 3 ends in a row without a new checkpoint." in text


def test_a_new_checkpoint_counts_from_the_beginning(clone):
  clone.set_codes(1, 1, "1 5", 1, "1 10", 1, 1, 1, 0)
  assert supervise(clone, "--tries=3")[0] == 1
  assert len(starts(clone)) == 8


def test_a_checkpoint_that_is_not_whole_does_not_count(clone):
  clone.set_codes("1 5", "1 10.orbax-checkpoint-tmp", "1 3", 0)
  assert supervise(clone, "--tries=2")[0] == 1
  assert len(starts(clone)) == 3


def test_what_train_writes_is_in_the_log_and_shown(clone, until):
  clone.set_codes("wait")
  script = clone.start("supervise.sh", "run", "--log=log", "--", *TRAIN)
  log = clone.folder / "log"
  until(lambda: log.exists() and "waiting" in log.read_text())
  os.killpg(script.pid, signal.SIGINT)
  text, _ = script.communicate()
  assert script.returncode == 130
  assert text == log.read_text()
  assert "interrupted" in text


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_that_is_told_to_stop_has_train_save_and_ends(clone, until, sent):
  clone.set_codes("wait", 0)
  script = clone.start("supervise.sh", "run", "--log=log", "--", *TRAIN)
  log = clone.folder / "log"
  until(lambda: log.exists() and "waiting" in log.read_text())
  script.send_signal(sent)
  text, _ = script.communicate()
  assert script.returncode == 143
  assert "saved" in text
  assert len(starts(clone)) == 1


def test_detached_it_runs_on_is_seen_and_is_stopped(clone, until):
  clone.set_codes("wait", 0)
  log = clone.folder / "log"
  code, text, _ = supervise(clone, "--detach")
  assert (code, "train starts; its log is log." in text) == (0, True)
  until(lambda: "waiting" in log.read_text())

  code, text, _ = clone.run("supervise.sh", "status", "--log=log")
  assert (code, text.splitlines()[0].endswith(": running")) == (0, True)
  code, _, text = supervise(clone)
  assert code == 2 and text.startswith("error: ") and "is training already" in text

  code, text, _ = clone.run("supervise.sh", "stop", "--log=log")
  assert (code, text.splitlines()[1].endswith(": not running")) == (0, True)
  assert "saved" in log.read_text()
  assert clone.run("supervise.sh", "stop", "--log=log")[0] == 0
  assert clone.codes.read_text() == "0\n"


def test_a_train_whose_supervisor_was_killed_keeps_another_from_starting(clone, until):
  clone.set_codes("wait", 0)
  script = clone.start("supervise.sh", "run", "--log=log", "--", *TRAIN)
  log = clone.folder / "log"
  until(lambda: log.exists() and "waiting" in log.read_text())
  script.kill()
  script.wait()
  assert supervise(clone)[0] == 2
  code, _, text = clone.run("supervise.sh", "stop", "--log=log")
  assert code == 2 and "without its supervisor" in text
  os.kill(int(re.search(r"waiting (\d+)", log.read_text())[1]), signal.SIGTERM)
  text, _ = script.communicate()
  assert text.endswith("saved\n")
  assert supervise(clone)[0] == 0


def test_a_dry_run_prints_the_command_and_does_nothing(clone):
  code, text, _ = supervise(clone, "--dry-run")
  python = clone.root / ".venv" / "bin" / "python"
  assert code == 0
  assert text == (
      f"'{python}' -m chexmix_jax.train --config=c.py '--output=a run' '--config.x=1 2'\n"
  )
  assert not (clone.folder / "log").exists()
  assert clone.called() == []


def test_without_a_set_up_the_mend_is_named(clone):
  (clone.root / ".venv" / "bin" / "python").unlink()
  code, _, text = supervise(clone)
  assert code == 2
  assert text.endswith(".venv is not there; make it with 'bash launch/setup.sh'.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "launch/supervise.sh takes one of these: run, status, stop; 'bash launch/supervise.sh"
         " --help' says more."),
        (("run", "--", "--output=a"), "launch/supervise.sh lacks --log; give --log=… or set"
         " CHEXMIX_LOG."),
        (("run", "--log=l", "--tries=0", "--", "--output=a"),
         "--tries=0 must be a whole number from 1."),
        (("run", "--log=l", "--", "--config=a"), "launch/supervise.sh finds no --output=RUN among"
         " the arguments of train; put them after --, with --config=… and --output=…."),
        (("run", "--log=no/l", "--", "--output=a"),
         "no/l cannot be written; name another file with --log=."),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(clone, arguments, message):
  assert clone.run("supervise.sh", *arguments) == (2, "", f"error: {message}\n")
