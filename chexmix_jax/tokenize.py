"""Study records to token records: python -m chexmix_jax.tokenize --help"""

import argparse
import pathlib
from typing import Any

from chexmix_jax import cli
from chexmix_jax.data.account import describe_account
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.tokenizers.bpe import BPETokenizer
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary


def run(
    studies: pathlib.Path,
    image_tokenizer: pathlib.Path,
    text_tokenizer: pathlib.Path,
    output: pathlib.Path,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, Any] | None:
  """Writes the tokens of every split of `studies` to `output`; the card.

  Finished output is left as it is. None where other processes are not done yet. Raises UserError
  for tokenizers that do not fit the studies.
  """
  image = ImageTokenizer.load(image_tokenizer)
  text = load_text_tokenizer(text_tokenizer)
  layout = Vocabulary.bpe if isinstance(text, BPETokenizer) else Vocabulary.sentencepiece
  vocabulary = layout(text.vocab_size - len(text.added), image.num_codes)
  if text.added:
    vocabulary = vocabulary.extended(len(text.added))
  return write_tokens(studies, image, text, vocabulary, output, process_index, process_count)


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="chexmix_jax.tokenize", description=__doc__)
  parser.add_argument("--studies", type=pathlib.Path, required=True, help="--output of prepare")
  parser.add_argument("--image_tokenizer", type=pathlib.Path, required=True, help="its folder")
  parser.add_argument(
      "--text_tokenizer", type=pathlib.Path, required=True,
      help="its model file, a folder with vocab.json and merges.txt, or an extended one",
  )  # fmt: skip
  parser.add_argument("--output", type=pathlib.Path, required=True)
  cli.add_process_arguments(parser)
  args = parser.parse_args(argv)
  index, count = cli.process_of(args)
  card = run(
      args.studies, args.image_tokenizer, args.text_tokenizer, args.output, index, count
  )  # fmt: skip
  if card is None:
    print(f"{args.output}: this process is done; others still write their shards")
    return
  print(describe_account(card["account"]))
  counts = ", ".join(f"{number} {split}" for split, number in card["splits"].items())
  print(f"{args.output}: tokens of {counts} studies")


if __name__ == "__main__":
  cli.entry(main)
