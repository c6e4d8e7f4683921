"""Study records to token records: python -m chexmix_jax.tokenize --help"""

import argparse
import pathlib
from typing import Any

from chexmix_jax import cli
from chexmix_jax.data import tokens
from chexmix_jax.tokenizers.bpe import BPETokenizer
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.load import load_text_tokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary


def run(
    studies: pathlib.Path,
    image_tokenizer: pathlib.Path,
    text_tokenizer: pathlib.Path,
    output: pathlib.Path,
) -> dict[str, Any]:
  """Writes the tokens of every split of `studies` to `output`; the card.

  Finished output is left as it is. Raises UserError for tokenizers that do not fit the studies.
  """
  image = ImageTokenizer.load(image_tokenizer)
  text = load_text_tokenizer(text_tokenizer)
  layout = Vocabulary.bpe if isinstance(text, BPETokenizer) else Vocabulary.sentencepiece
  vocabulary = layout(text.vocab_size, image.num_codes)
  return tokens.tokenize_studies(studies, image, text, vocabulary, output)


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="chexmix_jax.tokenize", description=__doc__)
  parser.add_argument("--studies", type=pathlib.Path, required=True, help="--output of prepare")
  parser.add_argument("--image_tokenizer", type=pathlib.Path, required=True, help="its folder")
  parser.add_argument(
      "--text_tokenizer", type=pathlib.Path, required=True,
      help="its model file, or a folder with vocab.json and merges.txt",
  )  # fmt: skip
  parser.add_argument("--output", type=pathlib.Path, required=True)
  args = parser.parse_args(argv)
  card = run(args.studies, args.image_tokenizer, args.text_tokenizer, args.output)
  counts = ", ".join(f"{number} {split}" for split, number in card["splits"].items())
  print(f"{args.output}: tokens of {counts} studies")


if __name__ == "__main__":
  cli.entry(main)
