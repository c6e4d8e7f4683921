"""What every command line shares: config files with overrides, and errors as one sentence."""

import difflib
import importlib
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import ml_collections
from absl import flags
from ml_collections import config_flags

from chexmix_jax.errors import UserError

ENTRY_POINTS = (
    "quickstart", "prepare", "train_image_tokenizer", "train_text_tokenizer", "tokenize", "train",
    "evaluate", "bench",
)  # fmt: skip


def entry(main: Callable[[], object]) -> None:
  """Runs `main` and exits: 2 with one sentence for a UserError, 130 for Ctrl-C."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which argparse leaves unparsed.
  try:
    main()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except subprocess.CalledProcessError as error:
    sys.exit(error.returncode)  # The child has said why.
  except KeyboardInterrupt:
    print("\nstopped; the same command goes on from here", file=sys.stderr)
    sys.exit(130)


def load_config(
    argv: list[str], default: str | None = None
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Takes `--config=PATH[:argument]` and `--config.a.b=value` out of argv.

  Returns the config with its overrides, and the rest of argv. `default` is the path where there is
  no `--config`. Raises UserError that names the file or the key.
  """
  argv = _joined(argv)
  taken = [a for a in argv if re.match(r"--?config(\.|=)", a)]
  rest = [a for a in argv if a not in taken]
  path = default
  for argument in taken:
    if argument.lstrip("-").startswith("config="):
      path = argument.split("=", 1)[1]
  if path is None:
    raise UserError("--config is missing; name a file such as --config=configs/stage1_2p8b.py.")
  file = pathlib.Path(path.split(":")[0])
  if not file.is_file():
    raise UserError(f"{file} is not a config file; name one such as configs/quickstart.py.")
  overrides = [a for a in taken if not a.lstrip("-").startswith("config=")]
  values = flags.FlagValues()
  program = ["chexmix_jax", f"--config={path}", *overrides]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=program)
  try:
    values(program)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(_explain(path, overrides, error)) from error
  return values.config, rest


def _joined(argv: list[str]) -> list[str]:
  """`--config PATH` and `--config.a.b value` as one argument each."""
  joined: list[str] = []
  for argument in argv:
    if joined and re.fullmatch(r"--?config(\.[\w.]+)?", joined[-1]):
      joined[-1] += f"={argument}"
    else:
      joined.append(argument)
  return joined


def _explain(path: str, overrides: list[str], error: Exception) -> str:
  """One sentence for an override that does not fit the file."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["chexmix_jax"])
  try:
    values(["chexmix_jax", f"--config={path}"])
  except Exception as file_error:
    return f"{path} cannot be read as a config ({_first_line(file_error)}); mend the file."
  for override in overrides:
    node = values.config
    name = override.split("=")[0].lstrip("-")
    for key in name.split(".")[1:]:
      if not isinstance(node, ml_collections.ConfigDict) or key not in node:
        known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}."
        return f"--{name} is not a setting of {path}; {hint}"
      node = node[key]
  return f"An override of {path} does not fit ({_first_line(error)}); mend its value."


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def main(argv: list[str] | None = None) -> None:
  """`chexmix NAME …`: the same as `python -m chexmix_jax.NAME …`."""
  argv = sys.argv[1:] if argv is None else argv
  names = ", ".join(ENTRY_POINTS)
  if not argv:
    raise UserError(f"Name a command: chexmix NAME, with NAME one of {names}.")
  if argv[0] not in ENTRY_POINTS:
    near = difflib.get_close_matches(argv[0], ENTRY_POINTS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {names}."
    raise UserError(f"{argv[0]!r} is not a command; {hint}")
  module = "bench.__main__" if argv[0] == "bench" else argv[0]
  importlib.import_module(f"chexmix_jax.{module}").main(argv[1:])


def console() -> None:
  """The console script."""
  entry(main)
