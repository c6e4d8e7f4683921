"""What every command line shares: config files with overrides, and errors as one sentence."""

import argparse
import difflib
import importlib
import importlib.util
import pathlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from chexmix_jax import config as config_lib
from chexmix_jax.errors import Stopped, UserError, exit_status

ENTRY_POINTS = (
    "quickstart", "prepare", "train_image_tokenizer", "train_text_tokenizer",
    "extend_text_tokenizer", "tokenize", "train", "find_learning_rate", "plan", "evaluate",
    "ablation", "adaptation", "predict", "convert", "model_card", "bench",
)  # fmt: skip

STEP_HELP = "of the checkpoint; default: the best of a run with validations, else the newest"
"""Of --step, which all that reads a run's checkpoint has."""


def entry(main: Callable[[], object]) -> None:
  """Runs `main` and exits: 2 with one sentence for a UserError, 130 for Ctrl-C, 143 for SIGTERM."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which argparse leaves unparsed.
  sys.unraisablehook = _interrupt_again
  try:
    main()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(exit_status(error))
  except Stopped as stop:
    print(f"\n{stop}", file=sys.stderr)
    sys.exit(exit_status(stop))
  except subprocess.CalledProcessError as error:
    if error.returncode < 0:
      name = signal.Signals(-error.returncode).name
      print(f"error: a child process was ended by {name}; see what did that.", file=sys.stderr)
      sys.exit(128 - error.returncode)
    sys.exit(error.returncode)  # The child has said why.
  except KeyboardInterrupt as stop:
    print("\nstopped; the same command goes on from here", file=sys.stderr)
    sys.exit(exit_status(stop))


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
  """Repeats a Ctrl-C that came while a destructor or the garbage collector's callback ran.

  Python drops what such code raises; jax has a callback of that kind, and the program would go on.
  """
  if unraisable.exc_type is not KeyboardInterrupt:
    sys.__unraisablehook__(unraisable)
    return
  main_thread = threading.main_thread().ident
  if main_thread is not None:
    threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT)).start()


def load_config(
    argv: list[str], default: str | None = None, schema: type | None = None
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Takes `--config=PATH[:argument]` and `--config.a.b=value` out of argv.

  Returns the config with its overrides, and the rest of argv; a group of settings that need not be
  there is left out by `--config.a.b=None`. `default` is the path where there is
  no `--config`. With the dataclass `schema`, settings that the file leaves at their defaults can be
  overridden too. Raises UserError that names the file or the key.
  """
  joined = _joined(argv)
  taken = [a for a in joined if re.match(r"--?config[.=]", a)]
  rest = [a for a in joined if a not in taken]
  files = [a.split("=", 1)[1] for a in taken if re.match(r"--?config=", a)]
  overrides = [a for a in taken if not re.match(r"--?config=", a)]
  path = files[-1] if files else default
  if path is None:
    raise UserError("--config is missing; name a file such as --config=configs/stage1_2p8b.py.")
  config = _read(path)
  if schema is not None:
    complete = config_lib.to_dict(config_lib.build(schema, config.to_dict(), path))
    config = ml_collections.ConfigDict(complete)
  overrides = [each for each in overrides if not _takes_group_away(config, each)]
  for override in overrides:
    _check_key(config, override, path)
  values = flags.FlagValues()
  program = ["chexmix_jax", *overrides]
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=program)
    values(program)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
        f"An override of {path} does not fit ({_first_line(error)}); mend its value."
    ) from error
  return values.config, rest


def _joined(argv: list[str]) -> list[str]:
  """`--config PATH` and `--config.a.b value` as one argument each."""
  joined: list[str] = []
  for argument in argv:
    if (
        joined
        and re.fullmatch(r"--?config(\.[\w.]+)?", joined[-1])
        and not argument.startswith("--")
    ):
      joined[-1] += f"={argument}"
    else:
      joined.append(argument)
  return joined


def _read(path: str) -> ml_collections.ConfigDict:
  """What `get_config` of PATH[:argument] gives."""
  name, *argument = path.split(":", 1)
  spec = importlib.util.spec_from_file_location("config", name)
  if not pathlib.Path(name).is_file() or spec is None or spec.loader is None:
    raise UserError(f"{name} is not a config file; name one such as configs/quickstart.py.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*argument)
  except UserError:
    raise
  except Exception as error:  # The file is the user's own program.
    raise UserError(
        f"{path} cannot be read as a config ({type(error).__name__}: {_first_line(error)}); mend"
        " the file or the argument after its colon."
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f"get_config of {name} gives no ml_collections.ConfigDict; mend the file.")
  return config


def _takes_group_away(config: ml_collections.ConfigDict, override: str) -> bool:
  """Does what `--config.a.b=None` says where that is a group of settings."""
  name, _, value = override.partition("=")
  *parents, last = name.split(".")[1:]
  node: Any = config
  for key in parents:
    node = node.get(key) if isinstance(node, ml_collections.ConfigDict) else None
  if value != "None" or not isinstance(node, ml_collections.ConfigDict):
    return False
  if not isinstance(node.get(last), ml_collections.ConfigDict):
    return False
  with node.ignore_type():
    node[last] = None
  return True


def _check_key(config: ml_collections.ConfigDict, override: str, path: str) -> None:
  """UserError with a hint for an override of what the config does not have."""
  name = override.split("=")[0].lstrip("-")
  node: Any = config
  for key in name.split(".")[1:]:
    known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
    if key not in known:
      hint = f"use one of {', '.join(known)}." if known else "leave it out."
      if near := difflib.get_close_matches(key, known, n=1):
        hint = f"did you mean {near[0]!r}?"
      raise UserError(f"--{name} is not a setting of {path}; {hint}")
    node = node[key]
  if isinstance(node, ml_collections.ConfigDict):
    raise UserError(f"--{name} is a group of settings; override those of it that should change.")


def _first_line(error: Exception) -> str:
  return str(error).strip().split("\n")[0]


def parse_columns(text: str) -> dict[str, str]:
  """`--columns=image=Path,report=Report` as a dict; UserError for anything else."""
  pairs = [pair.partition("=") for pair in text.split(",")]
  for key, _, column in pairs:
    if not key or not column:
      raise UserError(f"--columns={text} must be of the form image=COLUMN,report=COLUMN.")
  return {key.strip(): column.strip() for key, _, column in pairs}


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what says which share of a job this process does."""
  parser.add_argument("--process_index", type=int, default=0, help="of --process_count")
  parser.add_argument("--process_count", type=int, default=1, help="processes that share the work")
  parser.add_argument(
      "--distributed", action="store_true", help="take both from jax.distributed (pods, SLURM)"
  )


def process_of(args: argparse.Namespace) -> tuple[int, int]:
  """Index and number of the processes that share a job."""
  if not args.distributed:
    return args.process_index, args.process_count
  import jax  # Preparing data needs it for nothing else.
  import jax.extend.backend

  from chexmix_jax.parallel import distributed

  distributed.initialize()
  place = jax.process_index(), jax.process_count()
  # The processes share nothing else, and one that ends early must not stop the others.
  jax.distributed.shutdown()
  jax.extend.backend.clear_backends()
  return place


def join_processes(args: argparse.Namespace) -> None:
  """Makes this one of the processes that train together, where `args` name any.

  They are those of `add_process_arguments`, and `coordinator`.
  """
  from chexmix_jax.parallel import distributed

  index, count = args.process_index, args.process_count
  if args.distributed:
    if args.coordinator:
      raise UserError("--distributed finds the coordinator itself; leave out --coordinator.")
    distributed.initialize()
  elif args.coordinator:
    if not re.fullmatch(r".+:\d+", args.coordinator):
      raise UserError(f"--coordinator={args.coordinator} must be HOST:PORT of process 0.")
    if not 0 <= index < count:
      raise UserError(
          f"--process_index={index} must lie in 0 .. {count - 1}, with --process_count={count}."
      )
    distributed.initialize(args.coordinator, index, count)
  elif (index, count) != (0, 1):
    raise UserError(
        "--process_index and --process_count need --coordinator, HOST:PORT of process 0, to train."
    )


def main(argv: list[str] | None = None) -> None:
  """`chexmix NAME …`: the same as `python -m chexmix_jax.NAME …`."""
  argv = sys.argv[1:] if argv is None else argv
  names = ", ".join(ENTRY_POINTS)
  if not argv:
    raise UserError(f"Name a command: chexmix NAME, with NAME one of {names}.")
  if argv[0] in ("-h", "--help"):
    print(f"chexmix NAME …: python -m chexmix_jax.NAME …, with NAME one of {names}.")
    return
  if argv[0] not in ENTRY_POINTS:
    near = difflib.get_close_matches(argv[0], ENTRY_POINTS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {names}."
    raise UserError(f"{argv[0]!r} is not a command; {hint}")
  module = "bench.__main__" if argv[0] == "bench" else argv[0]
  importlib.import_module(f"chexmix_jax.{module}").main(argv[1:])


def console() -> None:
  """The console script."""
  entry(main)
