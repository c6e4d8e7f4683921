"""SLURM: the script of the job, and what it does when train ends."""

import re
import subprocess

import pytest

NODES = ["--nodes=2", "--gpus-per-node=8"]
TRAIN = ["--config=configs/c.py", "--output=runs/a", "--config.x=1 2"]

SCRIPT = """#!/usr/bin/env bash
#SBATCH --job-name=chexmix
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{folder}/runs/a-%j.log"

trap : TERM # Where SLURM signals this shell too, it goes on waiting for srun.
code=0
srun --gpu-bind=none --kill-on-bad-exit=0 --wait=300 '{python}' -m chexmix_jax.train --distributed \
--config=configs/c.py --output=runs/a '--config.x=1 2' || code=$?
# A job that was cancelled, or that SLURM itself puts back, is not RUNNING any more.
if [[ $code == 143 && $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def expected_script(clone):
  python = clone.root / ".venv" / "bin" / "python"
  return SCRIPT.format(folder=clone.folder, python=python)


def test_a_dry_run_prints_what_would_be_run(clone):
  code, text, error = clone.run("slurm.sh", "--dry-run", *NODES, "--", *TRAIN)
  assert (code, error) == (0, "")
  assert text == (
      f"env ACCELERATOR=cuda13 bash '{clone.root}/launch/setup.sh'\n"
      f"mkdir -p {clone.folder}/runs\n"
      f"sbatch <<'SCRIPT'\n{expected_script(clone)}SCRIPT\n"
  )
  assert clone.called() == []
  assert not (clone.folder / "runs").exists()


def test_the_job_is_submitted_after_the_set_up(clone):
  clone.reply("sbatch", 'cat >"$HOME/job"')
  assert clone.run("slurm.sh", *NODES, "--", *TRAIN) == (0, "", "")
  assert clone.called() == [["setup", "cuda13"], ["sbatch"]]
  assert (clone.folder / "job").read_text() == expected_script(clone)
  assert (clone.folder / "runs").is_dir()


def test_options_of_the_job(clone):
  options = ["--cpus-per-task=12", "--time=24:00:00", "--partition=gpu", "--account=lab"]
  _, text, _ = clone.run(
      "slurm.sh", "--dry-run", *NODES, *options, "--job-name=j", "--grace=600", "--", *TRAIN
  )
  lines = text.splitlines()
  for option in [*options, "--job-name=j", "--signal=TERM@600"]:
    assert f"#SBATCH {option}" in lines
  assert any(re.match(r"srun .* --wait=600 --cpus-per-task=12 ", line) for line in lines)


@pytest.fixture
def job(clone):
  """Runs the job's script with train's exit code and the state of the job then."""
  clone.reply("sbatch", 'cat >"$HOME/job"')
  clone.run("slurm.sh", *NODES, "--", *TRAIN)

  def run(code, state):
    clone.notes.write_text("")
    clone.reply("srun", f"exit {code}")
    clone.reply("squeue", f"echo {state}")
    done = subprocess.run(
        ["bash", clone.folder / "job"], env=clone.environment(SLURM_JOB_ID="7"), check=False
    )
    return done.returncode, clone.called("scontrol")

  return run


def test_the_job_queues_itself_again_after_a_checkpoint_at_sigterm(job):
  assert job(143, "RUNNING") == (143, [["scontrol", "requeue", "7"]])


@pytest.mark.parametrize(
    ("code", "state"), [(0, "RUNNING"), (1, "RUNNING"), (2, "RUNNING"), (143, "COMPLETING")]
)
def test_a_job_that_is_complete_crashed_or_cancelled_is_not_queued_again(job, code, state):
  assert job(code, state) == (code, [])


def test_the_script_of_the_job_outlives_a_sigterm(clone, job):
  # SLURM may send it to all processes of a job; here srun's stand-in sends it to its parent.
  job(0, "RUNNING")
  clone.reply("srun", "kill -TERM $PPID; exit 143")
  clone.notes.write_text("")
  done = subprocess.run(
      ["bash", clone.folder / "job"], env=clone.environment(SLURM_JOB_ID="7"), check=False
  )
  assert done.returncode == 143
  assert clone.called("scontrol") == [["scontrol", "requeue", "7"]]


def test_a_set_up_that_fails_submits_nothing(clone):
  (clone.root / "launch" / "setup.sh").write_text("exit 2\n")
  assert clone.run("slurm.sh", *NODES, "--", *TRAIN)[0] == 2
  assert clone.called() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes=2"],
         "launch/slurm.sh lacks --gpus-per-node; give --gpus-per-node=… or set"
         " CHEXMIX_GPUS_PER_NODE."),
        ([*NODES, "--grace=5m", "--", *TRAIN], "--grace=5m must be a whole number from 1."),
        (NODES, "launch/slurm.sh finds no --output=RUN among the arguments of train; put them"
         " after --, with --config=… and --output=…."),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(clone, arguments, message):
  assert clone.run("slurm.sh", *arguments) == (2, "", f"error: {message}\n")
  assert clone.called() == []
