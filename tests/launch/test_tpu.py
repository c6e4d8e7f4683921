"""TPU slices: the commands of gcloud, and what they do on workers that are folders."""

import shlex

import pytest

PLACE = ["--zone=z", "--project=p"]
NAMED = ["--name=pod", *PLACE]
SLICE = ["--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
TRAIN = ["--config=configs/c.py", "--output=/mnt/chexmix/run", "--config.x=1 2"]
TPUS = ["gcloud", "compute", "tpus"]
SUPERVISE = (
    "cd chexmix_jax && bash launch/supervise.sh run --detach --log=../train.log --tries=5"
    " -- --distributed --config=configs/c.py --output=/mnt/chexmix/run '--config.x=1 2'"
)

# Copies to and commands on all workers are done, one after another, in the folders of two workers.
PODS = r"""
shift 4
if [[ $* == *--worker=[0-9]* ]]; then workers=(0); else workers=(0 1); fi
for worker in "${workers[@]}"; do
  home=$HOME/worker$worker
  mkdir -p "$home"
  for word in "$@"; do
    if [[ $word == *.tar.gz ]]; then cp "$word" "$home"; fi
    if [[ $word == --command=* ]]; then
      (cd "$home" && HOME=$home bash -c "${word#*=}") || exit
    fi
  done
done
"""


def commands(text):
  """Words of the commands that a dry run printed."""
  return [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]


def on_workers(command, worker="all"):
  return [*TPUS, "tpu-vm", "ssh", "pod", f"--worker={worker}", f"--command={command}", *PLACE]


def install(clone, bucket=()):
  """The commands of install."""
  archive = clone.folder / f"chexmix_jax-{clone.git('rev-parse', 'HEAD')}.tar.gz"
  unpack = (
      "flock --nonblock train.log true ||"
      ' { echo "error: $(hostname) is training; stop it first." >&2; exit 2; };'
      " mkdir -p chexmix_jax &&"
      " find chexmix_jax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + &&"
      f" tar -xzf {archive.name} -C chexmix_jax && rm {archive.name} &&"
      f" {shlex.join(['bash', 'chexmix_jax/launch/tpu_worker.sh', *bucket])}"
  )
  return [
      ["git", "-C", str(clone.root), "archive", "--format=tar.gz", f"--output={archive}",
       clone.git("rev-parse", "HEAD")],
      [*TPUS, "tpu-vm", "scp", str(archive), "pod:", "--worker=all", *PLACE],
      on_workers(unpack),
  ]  # fmt: skip


CREATE = [*TPUS, "tpu-vm", "create", "pod", "--version=v2-alpha-tpuv5-lite",
          "--accelerator-type=v5litepod-256", "--spot", *PLACE]  # fmt: skip
DESCRIBE = [*TPUS, "tpu-vm", "describe", "pod", "--format=value(state)", *PLACE]
DELETE = [*TPUS, "tpu-vm", "delete", "pod"]
QUEUED = [*TPUS, "queued-resources"]
QUEUED_CREATE = [*QUEUED, "create", "pod", "--node-id=pod", "--runtime-version=v2-alpha-tpuv5-lite",
                 "--accelerator-type=v5litepod-256", "--spot", *PLACE]  # fmt: skip
QUEUED_DESCRIBE = [*QUEUED, "describe", "pod", "--format=value(state.state)", *PLACE]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["create", *SLICE], [CREATE]),
        (["create", *SLICE, "--queued"], [QUEUED_CREATE, QUEUED_DESCRIBE]),
        (["run", "--", *TRAIN], [on_workers(SUPERVISE)]),
        (["logs"],
         [on_workers('tail --lines=50 --follow=name train.log |'
                     ' sed --unbuffered "s/^/$(hostname): /"', worker="0")]),
        (["status"],
         [DESCRIBE, on_workers("bash chexmix_jax/launch/supervise.sh status --log=train.log")]),
        (["stop"], [on_workers("bash chexmix_jax/launch/supervise.sh stop --log=train.log")]),
        (["delete"], [[*DELETE, *PLACE]]),
        (["delete", "--queued"], [[*QUEUED, "delete", "pod", "--force", *PLACE]]),
    ],
)  # fmt: skip
def test_dry_runs(clone, arguments, expected):
  head, *rest = arguments
  code, text, error = clone.run("tpu.sh", head, "--dry-run", *NAMED, *rest)
  assert (code, error) == (0, "")
  assert commands(text) == expected
  assert clone.called() == []


def test_dry_run_of_install(clone):
  code, text, _ = clone.run("tpu.sh", "install", "--dry-run", "--bucket=b", *NAMED)
  assert code == 0
  assert commands(text) == install(clone, bucket=["b", "/mnt/chexmix"])
  assert not list(clone.folder.glob("*.tar.gz"))


@pytest.mark.parametrize(
    ("queued", "expected"),
    [
        ([], [DESCRIBE, [*DELETE, "--quiet", *PLACE], CREATE]),
        (["--queued"],
         [QUEUED_DESCRIBE, [*QUEUED, "delete", "pod", "--force", "--quiet", *PLACE], QUEUED_CREATE,
          QUEUED_DESCRIBE]),
    ],
)  # fmt: skip
def test_dry_run_of_resume(clone, queued, expected):
  code, text, _ = clone.run(
      "tpu.sh", "resume", "--dry-run", *NAMED, *SLICE, *queued, "--", *TRAIN
  )
  assert code == 0
  archive, *copy = install(clone)
  assert commands(text) == [archive, *expected, *copy, on_workers(SUPERVISE)]


def test_flags_come_from_variables_too(clone):
  variables = {
      "CHEXMIX_NAME": "pod",
      "CHEXMIX_ZONE": "elsewhere",
      "CHEXMIX_PROJECT": "p",
      "CHEXMIX_ACCELERATOR_TYPE": "v5litepod-256",
      "CHEXMIX_RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
      "CHEXMIX_SPOT": "1",
      "CHEXMIX_DRY_RUN": "1",
  }
  _, text, _ = clone.run("tpu.sh", "create", "--zone=z", **variables)
  assert commands(text) == [CREATE]


def test_create_waits_for_a_queued_slice(clone):
  states = clone.folder / "states"
  states.write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
  next_state = f'head -n 1 "{states}"; sed -i 1d "{states}"'
  clone.reply("gcloud", f"if [[ $4 == describe ]]; then {next_state}; fi")
  code, text, _ = clone.run("tpu.sh", "create", *NAMED, *SLICE, "--queued")
  assert code == 0
  assert clone.called() == [QUEUED_CREATE, *[QUEUED_DESCRIBE] * 3]
  assert clone.called("sleep") == [["sleep", "30"]] * 2
  assert text.startswith("pod: WAITING_FOR_RESOURCES.")


def test_create_says_when_a_queued_slice_will_not_come(clone):
  clone.reply("gcloud", "if [[ $4 == describe ]]; then echo FAILED; fi")
  code, _, text = clone.run("tpu.sh", "create", *NAMED, *SLICE, "--queued")
  assert code == 2
  assert text == "error: the request pod is FAILED; 'bash launch/tpu.sh resume' asks again.\n"


def test_a_command_that_fails_ends_the_script(clone):
  clone.reply("gcloud", "exit 7")
  assert clone.run("tpu.sh", "resume", *NAMED, *SLICE, "--", *TRAIN)[0] == 7
  assert clone.called() == [DESCRIBE, CREATE]


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_resume_deletes_what_is_left_and_makes_it_again(clone, state):
  clone.reply("gcloud", f"if [[ $4 == describe ]]; then echo {state}; fi")
  code, _, _ = clone.run("tpu.sh", "resume", *NAMED, *SLICE, "--", *TRAIN)
  assert code == 0
  _, *copy = install(clone)
  assert clone.called() == [
      DESCRIBE, [*DELETE, "--quiet", *PLACE], CREATE, *copy, on_workers(SUPERVISE)
  ]  # fmt: skip


def test_resume_leaves_a_slice_alone_that_lives(clone):
  clone.reply("gcloud", "echo READY")
  code, _, text = clone.run("tpu.sh", "resume", *NAMED, *SLICE, "--", *TRAIN)
  assert code == 2
  assert text == (
      "error: pod is READY, so not dead; wait, or start train with 'bash launch/tpu.sh run'.\n"
  )
  assert clone.called() == [DESCRIBE]


def test_status_of_a_dead_slice_asks_no_worker(clone):
  clone.reply("gcloud", "echo PREEMPTED")
  assert clone.run("tpu.sh", "status", *NAMED) == (0, "pod: PREEMPTED\n", "")
  assert clone.called() == [DESCRIBE]


def test_a_run_on_two_workers_from_install_to_stop(clone, until):
  worker = clone.root / "launch" / "tpu_worker.sh"
  python = clone.root / ".venv" / "bin" / "python"
  worker.write_text(f'mkdir -p chexmix_jax/.venv/bin && cp "{python}" chexmix_jax/.venv/bin/\n')
  (clone.root / "old.py").write_text("")
  clone.commit()
  clone.reply("gcloud", f"if [[ $4 == describe ]]; then echo READY; else {PODS} fi")
  homes = [clone.folder / "worker0", clone.folder / "worker1"]
  assert clone.run("tpu.sh", "install", *NAMED)[0] == 0
  assert all((home / "chexmix_jax" / "old.py").exists() for home in homes)

  # Another commit: what it has not goes, .venv stays.
  (clone.root / "old.py").unlink()
  worker.write_text("test -x chexmix_jax/.venv/bin/python\n")
  clone.commit()
  assert clone.run("tpu.sh", "install", *NAMED)[0] == 0
  assert not any((home / "chexmix_jax" / "old.py").exists() for home in homes)
  assert not any(list(home.glob("*.tar.gz")) for home in homes)

  clone.set_codes("wait", "wait")
  train = ["--config=configs/c.py", f"--output={clone.folder / 'a run'}"]
  code, text, _ = clone.run("tpu.sh", "run", *NAMED, "--", *train)
  assert (code, text.count("train starts; its log is ../train.log.")) == (0, 2)
  logs = [home / "train.log" for home in homes]
  until(lambda: all("waiting" in log.read_text() for log in logs))
  started = ["train", "-m", "chexmix_jax.train", "--distributed", *train]
  assert clone.called("train") == [started, started]

  code, _, text = clone.run("tpu.sh", "install", *NAMED)
  assert code == 2 and text.endswith(" is training; stop it first.\n")
  assert clone.run("tpu.sh", "run", *NAMED, "--", *TRAIN)[0] == 2
  assert clone.run("tpu.sh", "status", *NAMED)[1].count(": running\n") == 2
  code, text, _ = clone.run("tpu.sh", "stop", *NAMED)
  assert (code, text.count(": not running\n")) == (0, 2)
  assert all("saved" in log.read_text() for log in logs)


def test_changes_that_are_not_committed_are_not_installed_unasked(clone):
  with (clone.root / "launch" / "tpu.sh").open("a") as file:
    file.write("\n")
  code, _, text = clone.run("tpu.sh", "install", *NAMED)
  assert code == 2
  assert text == (
      f"error: {clone.root} has changes that are not committed; commit them, or leave them out"
      " with --allow-dirty.\n"
  )
  assert clone.called() == []
  assert clone.run("tpu.sh", "install", "--allow-dirty", "--dry-run", *NAMED)[0] == 0


def test_a_folder_without_git_is_not_installed(clone):
  (clone.root / ".git").rename(clone.folder / "git")
  code, _, text = clone.run("tpu.sh", "install", *NAMED)
  assert code == 2
  assert text.startswith(f"error: {clone.root} is not a git repository; clone it with git")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["begin"], "launch/tpu.sh takes one of these: create, install, run, logs, status, stop,"
         " resume, delete; 'bash launch/tpu.sh --help' says more."),
        (["status"], "launch/tpu.sh lacks --name; give --name=… or set CHEXMIX_NAME."),
        (["create", "--name=pod", "--accelerator-type=t"],
         "launch/tpu.sh lacks --runtime-version; give --runtime-version=… or set"
         " CHEXMIX_RUNTIME_VERSION."),
        (["status", "--name", "pod"], "launch/tpu.sh does not take '--name'; 'bash launch/tpu.sh"
         " --help' says what it takes (values follow =, arguments of train follow --)."),
        (["run", "--name=pod", "--", "--config=c.py"], "launch/tpu.sh finds no --output=RUN among"
         " the arguments of train; put them after --, with --config=… and --output=…."),
        (["run", "--name=pod", "--", "--output=runs/a"],
         "--output=runs/a must begin with /; name a folder that all hosts see."),
        (["run", "--name=pod", "--tries=many", "--", "--output=/a"],
         "--tries=many must be a whole number from 1."),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_sentence(clone, arguments, message):
  assert clone.run("tpu.sh", *arguments) == (2, "", f"error: {message}\n")
  assert clone.called() == []
