"""GKE: the commands of xpk and kubectl."""

import shlex
import subprocess

import pytest

PLACE = ["--cluster=c", "--zone=z", "--project=p"]
TYPE = "--tpu-type=v5litepod-256"
TRAIN = ["--config=configs/c.py", "--output=/mnt/chexmix/run", "--config.x=1 2"]
COMMAND = (
    "exec .venv/bin/python -m chexmix_jax.train --distributed --config=configs/c.py"
    " --output=/mnt/chexmix/run '--config.x=1 2'"
)
RESTARTS = ["--max-restarts=50", "--restart-on-exit-codes=1",
            "--termination-grace-period-seconds=300"]  # fmt: skip
MOUNT = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"


def workload(*image, command):
  return ["xpk", "workload", "create", "--workload=w", TYPE, "--num-slices=1", *image,
          f"--command={command}", *RESTARTS, *PLACE]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["create", TYPE],
         [["xpk", "cluster", "create", TYPE, "--num-slices=1", "--on-demand", *PLACE]]),
        (["create", TYPE, "--spot", "--num-slices=4"],
         [["xpk", "cluster", "create", TYPE, "--num-slices=4", "--spot", *PLACE]]),
        (["create", TYPE, "--reservation=r", "--bucket=b"],
         [["xpk", "cluster", "create", TYPE, "--num-slices=1", "--reservation=r",
           "--enable-gcsfuse-csi-driver", *PLACE],
          ["xpk", "storage", "attach", "chexmix", "--type=gcsfuse", "--bucket=b", "--size=1",
           "--mount-point=/mnt/chexmix", "--readonly=false", "--auto-mount=true",
           f"--mount-options={MOUNT}", "--no-prefetch-metadata", *PLACE]]),
        (["run", TYPE, "--workload=w", "--image=i", "--", *TRAIN],
         [workload("--docker-image=i", command=COMMAND)]),
        (["logs", "--workload=w"],
         [["kubectl", "logs", "--selector=jobset.sigs.k8s.io/jobset-name=w,"
           "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0",
           "--container=jax-tpu", "--follow", "--prefix", "--tail=50",
           "--max-log-requests=1000"]]),
        (["logs", "--workload=w", "--worker=all"],
         [["kubectl", "logs", "--selector=jobset.sigs.k8s.io/jobset-name=w", "--container=jax-tpu",
           "--follow", "--prefix", "--tail=50", "--max-log-requests=1000"]]),
        (["list"], [["xpk", "workload", "list", *PLACE]]),
        (["stop", "--workload=w"], [["xpk", "workload", "delete", "--workload=w", *PLACE]]),
        (["delete"], [["xpk", "cluster", "delete", *PLACE]]),
    ],
)  # fmt: skip
def test_commands_are_printed_by_a_dry_run_and_else_run(clone, arguments, expected):
  head, *rest = arguments
  code, text, error = clone.run("gke.sh", head, "--dry-run", *PLACE, *rest)
  assert (code, error) == (0, "")
  assert [shlex.split(line) for line in text.splitlines()] == expected
  assert clone.called() == []
  assert clone.run("gke.sh", head, *PLACE, *rest) == (0, "", "")
  assert clone.called() == expected


def test_run_sends_the_commit_that_is_checked_out(clone):
  (clone.root / "runs").mkdir()
  code, _, error = clone.run("gke.sh", "run", TYPE, "--workload=w", *PLACE, "--", *TRAIN)
  assert (code, error) == (0, "")
  folder = clone.folder / f"chexmix_jax-{clone.git('rev-parse', 'HEAD')}"
  assert clone.called() == [
      workload("--base-docker-image=python:3.12", f"--script-dir={folder}",
               command=f"ACCELERATOR=tpu bash launch/setup.sh && {COMMAND}")
  ]  # fmt: skip
  assert sorted(path.name for path in folder.iterdir()) == [".gitignore", "launch"]


def test_the_command_of_a_workload_passes_signals_to_train(clone, until):
  # As xpk wraps it: the signal goes to the shell that runs the command in the background.
  clone.set_codes("wait")
  _, text, _ = clone.run(
      "gke.sh", "run", "--dry-run", TYPE, "--workload=w", "--image=i", *PLACE, "--", *TRAIN
  )
  command = next(word for word in shlex.split(text) if word.startswith("--command="))[10:]
  log = clone.folder / "log"
  with log.open("w") as file:
    wrapper = subprocess.Popen(
        ["bash", "-c", f"trap 'kill -TERM $!' TERM; ({command}) & wait; wait $!"],
        cwd=clone.root, env=clone.environment(), stdout=file,
    )  # fmt: skip
  until(lambda: "waiting" in log.read_text())
  wrapper.terminate()
  assert wrapper.wait() == 143
  assert log.read_text().endswith("saved\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "launch/gke.sh lacks --cluster; give --cluster=… or set CHEXMIX_CLUSTER."),
        (["run", "--cluster=c"],
         "launch/gke.sh lacks --workload; give --workload=… or set CHEXMIX_WORKLOAD."),
        (["run", "--cluster=c", "--workload=w", "--tpu-type=t", "--", "--output=run"],
         "--output=run must begin with /; name a folder that all hosts see."),
        (["create", "--cluster=c", "--tpu-type=t", "--num-slices=two"],
         "--num-slices=two must be a whole number from 1."),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(clone, arguments, message):
  assert clone.run("gke.sh", *arguments) == (2, "", f"error: {message}\n")
  assert clone.called() == []
