"""Command lines: overrides of config files, exit statuses, and the console script."""

import pathlib
import subprocess
import sys

import pytest

from chexmix_jax import cli, train
from chexmix_jax.errors import Stopped, UserError
from chexmix_jax.training.setup import TrainConfig

STAGE1 = str(pathlib.Path(__file__).parents[1] / "configs" / "stage1_2p8b.py")


def load(*arguments, schema=None):
  return cli.load_config([f"--config={STAGE1}", *arguments], schema=schema)[0]


def test_overrides_change_values_and_keep_their_types():
  config = load(
      "--config.steps=100",
      "--config.optimizer.learning_rate=1e-4",
      "--config.optimizer.warmup_steps", "7",
      "--config.model.dtype=float32",
      "--config.model.remat=none",
      "--config.model.scan_layers=false",
      "--config.model.qk_norm",
      "--config.data.masking.image.weight=2",
  )  # fmt: skip
  assert config.steps == 100 and config.optimizer.warmup_steps == 7
  assert config.optimizer.learning_rate == 1e-4
  assert config.model.dtype == "float32"
  assert config.model.remat == "none"
  assert config.model.scan_layers is False and config.model.qk_norm is True
  assert config.data.masking.image.weight == 2.0
  assert config.data.context == 4608


def test_the_rest_of_the_command_line_comes_back_in_order():
  argv = ["--output", "x", "--config", STAGE1, "--config.steps", "3", "--seed=1"]
  _, rest = cli.load_config(argv)
  assert rest == ["--output", "x", "--seed=1"]


def test_the_last_config_file_wins_over_the_default(tmp_path):
  path = tmp_path / "c.py"
  path.write_text(
      "import ml_collections\n"
      "def get_config(name='a'):\n  return ml_collections.ConfigDict({'name': name})\n"
  )
  assert cli.load_config([], default=str(path))[0].name == "a"
  assert cli.load_config([], default=f"{path}:b")[0].name == "b"
  assert cli.load_config([f"--config={path}:c", "--config.name=d"], default=STAGE1)[0].name == "d"


def test_a_schema_opens_what_the_file_leaves_at_its_default(tmp_path):
  path = tmp_path / "c.py"
  path.write_text(
      "import ml_collections\n"
      "def get_config():\n"
      "  return ml_collections.ConfigDict({'model': {}, 'data': {'tokens': 't', 'context': 8,"
      " 'batch_size': 2}, 'optimizer': {'clip_norm': 1}})\n"
  )
  override = "--config.optimizer.weight_decay=0.5"
  with pytest.raises(UserError, match=r"weight_decay is not a setting"):
    cli.load_config([f"--config={path}", override])
  config, _ = cli.load_config([f"--config={path}", override], schema=TrainConfig)
  assert config.optimizer.weight_decay == 0.5 and config.model.width == 2560
  # The file's 1 has become the float that the dataclass wants.
  config, _ = cli.load_config([f"--config={path}", "--config.optimizer.clip_norm=0.5"],
                              schema=TrainConfig)  # fmt: skip
  assert config.optimizer.clip_norm == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.model.widht=1", r"--config\.model\.widht is not a setting.*mean 'width'\?"),
        ("--config.optimiser.b1=1", r"--config\.optimiser\.b1 .*mean 'optimizer'\?"),
        ("--config.zzz=1", r"--config\.zzz is not a setting .*use one of .*steps"),
        ("--config.steps.more=1", r"--config\.steps\.more is not a setting .*leave it out"),
        ("--config.steps=many", r"--config\.steps=many.*mend its value"),
        ("--config.steps=1.5", r"--config\.steps=1\.5.*mend its value"),
        ("--config.steps", r"--config\.steps\); mend its value"),
        ("--config.model.qk_norm=maybe", "maybe.*mend its value"),
        ("--config.model=1", r"--config\.model is a group of settings"),
    ],
)
def test_an_override_that_does_not_fit_is_named(override, message):
  with pytest.raises(UserError, match=message) as raised:
    load(override)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "AttributeError.*get_config"),
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("def get_config(): return 1", "no ml_collections.ConfigDict"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named(tmp_path, text, message):
  path = tmp_path / "broken.py"
  path.write_text(text)
  with pytest.raises(UserError, match=rf"broken\.py.*{message}|{message}.*broken\.py"):
    cli.load_config([f"--config={path}"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config is missing"),
        (["--config"], "--config is missing"),
        (["--config=nothing.py"], "nothing.py is not a config file"),
        ([f"--config={STAGE1}:big"], "TypeError.*after its colon"),
    ],
)
def test_a_missing_config_file_is_named(argv, message):
  with pytest.raises(UserError, match=message):
    cli.load_config(argv)


def exit_of(main, capsys):
  with pytest.raises(SystemExit) as exited:
    cli.entry(main)
  return exited.value.code, capsys.readouterr().err


def test_a_user_error_is_one_sentence_and_status_2(capsys, tmp_path):
  output = tmp_path / "run"
  code, text = exit_of(
      lambda: train.main([f"--config={STAGE1}", "--config.stpes=1", f"--output={output}"]), capsys
  )
  assert code == 2
  assert text == f"error: --config.stpes is not a setting of {STAGE1}; did you mean 'steps'?\n"
  assert not output.exists()


def test_other_ends_have_their_own_status(capsys):
  def interrupt():
    raise KeyboardInterrupt

  def stop():
    raise Stopped("stopped by SIGTERM after step 3")

  def child(code):
    subprocess.run([sys.executable, "-c", code], check=True)

  assert exit_of(interrupt, capsys) == (
      130, "\nstopped; the same command goes on from here\n"
  )  # fmt: skip
  assert exit_of(stop, capsys) == (143, "\nstopped by SIGTERM after step 3\n")
  assert exit_of(lambda: child("raise SystemExit(2)"), capsys) == (2, "")
  code, text = exit_of(lambda: child("import os; os.kill(os.getpid(), 9)"), capsys)
  assert code == 137 and "SIGKILL" in text


_LOST_INTERRUPT = """
import os, signal, time
from chexmix_jax import cli

# Ignored where the tests run in the background of a script, and then by this process too.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Cell:
  def __del__(self):
    os.kill(os.getpid(), signal.SIGINT)

def main():
  Cell()  # Python drops what a destructor raises.
  for _ in range(300):
    time.sleep(0.1)

cli.entry(main)
"""


def test_an_interrupt_that_a_destructor_swallows_still_stops_the_program():
  done = subprocess.run(
      [sys.executable, "-c", _LOST_INTERRUPT], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (
      130, "\nstopped; the same command goes on from here\n"
  )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process_index=1", "--process_count=2"], "need --coordinator, HOST:PORT of process 0"),
        (["--coordinator=host"], "--coordinator=host must be HOST:PORT"),
        (
            ["--coordinator=host:12", "--process_index=2", "--process_count=2"],
            r"--process_index=2 must lie in 0 \.\. 1, with --process_count=2",
        ),
        (["--coordinator=host:12", "--distributed"], "leave out --coordinator"),
        (["--distributed"], "name --process_index and --process_count instead, for train with"),
    ],
)
def test_processes_that_cannot_be_told_apart_are_refused(tmp_path, arguments, message):
  with pytest.raises(UserError, match=message):
    train.main([f"--config={STAGE1}", f"--output={tmp_path / 'run'}", *arguments])
  assert not (tmp_path / "run").exists()


def test_an_unexpected_error_keeps_its_traceback():
  with pytest.raises(ZeroDivisionError):
    cli.entry(lambda: 1 / 0)


def test_the_console_script_runs_the_entry_points(tmp_path):
  with pytest.raises(UserError, match=r"stpes is not a setting"):
    cli.main(["train", f"--config={STAGE1}", "--config.stpes=1", f"--output={tmp_path}"])
  with pytest.raises(UserError, match="Name a benchmark"):
    cli.main(["bench"])


def test_the_console_script_explains_itself(capsys):
  cli.main(["--help"])
  text = capsys.readouterr().out
  assert all(name in text for name in cli.ENTRY_POINTS)
  with pytest.raises(UserError, match="Name a command"):
    cli.main([])
  with pytest.raises(UserError, match=r"'trian' is not a command; did you mean 'train'\?"):
    cli.main(["trian"])


@pytest.mark.parametrize("name", cli.ENTRY_POINTS)
def test_every_entry_point_is_there(name):
  folder = pathlib.Path(cli.__file__).parent
  assert (folder / f"{name}.py").is_file() or (folder / name / "__main__.py").is_file()
