"""Trains the text tokenizer: python -m chexmix_jax.train_text_tokenizer --help"""

import argparse
import pathlib

from chexmix_jax import cli
from chexmix_jax.data import studies as studies_lib
from chexmix_jax.tokenizers import text


def run(
    studies: pathlib.Path, vocab_size: int, output: pathlib.Path, at_most: bool = False
) -> text.SentencePieceTokenizer:
  """Trains on the training split of `studies` and writes the model file `output`.

  It reads the reports, the questions and their answers. With `at_most`, texts of few words get
  fewer ids. Raises UserError for a `vocab_size` that does not fit the texts.
  """
  texts = (
      record[name]
      for need, names in (("report", ("report",)), ("question", ("question", "answer")))
      for record in studies_lib.open_studies(studies, "train", (need,))
      for name in names
  )
  return text.train_sentencepiece(texts, vocab_size, output, at_most)


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="chexmix_jax.train_text_tokenizer", description=__doc__)
  parser.add_argument("--studies", type=pathlib.Path, required=True, help="--output of prepare")
  parser.add_argument("--vocab_size", type=int, required=True)
  parser.add_argument("--output", type=pathlib.Path, required=True, help="model file to write")
  args = parser.parse_args(argv)
  tokenizer = run(args.studies, args.vocab_size, args.output)
  print(f"{args.output}: {tokenizer.vocab_size} ids")


if __name__ == "__main__":
  cli.entry(main)
