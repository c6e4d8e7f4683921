"""Adds tokens to a text tokenizer: python -m chexmix_jax.extend_text_tokenizer --help"""

import argparse
import pathlib

from chexmix_jax import cli
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.load import extend_text_tokenizer


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="chexmix_jax.extend_text_tokenizer", description=__doc__)
  parser.add_argument(
      "--text_tokenizer", type=pathlib.Path, required=True,
      help="its model file, or a folder with vocab.json and merges.txt",
  )  # fmt: skip
  parser.add_argument(
      "--tokens", type=pathlib.Path, required=True, help="text file, one new token a line"
  )
  parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write")
  args = parser.parse_args(argv)
  try:
    tokens = args.tokens.read_text(encoding="utf-8").splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"{args.tokens} is no UTF-8 text file that can be read.") from error
  tokenizer = extend_text_tokenizer(args.text_tokenizer, tokens, args.output)
  print(f"{args.output}: {tokenizer.vocab_size} ids, the last {len(tokens)} of them new")


if __name__ == "__main__":
  cli.entry(main)
