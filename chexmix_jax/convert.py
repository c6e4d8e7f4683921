"""Weights from PyTorch and back.

python -m chexmix_jax.convert {from_torch,to_torch,from_peft,to_peft} --help
"""

import argparse
import pathlib

from chexmix_jax import cli
from chexmix_jax.conversion import from_torch, peft, to_torch


def main(argv: list[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m chexmix_jax.convert", description=__doc__)
  commands = parser.add_subparsers(dest="command", required=True)
  reading = commands.add_parser("from_torch", help="a model directory from PyTorch's files")
  for name, is_required, text in (
      ("model", True, "model.safetensors, its index, or the folder of a Hugging Face Phi"),
      ("vqgan", True, "vqgan.ckpt or .safetensors of the image tokenizer"),
      ("vqgan-config", False, "its yaml; by default the published resolution"),
      ("text-tokenizer", False, "folder with vocab.json and merges.txt, or a SentencePiece model"),
      ("vocabulary", False, "ids.json, where the special ids are not the published ones"),
      ("output", True, "folder to write"),
  ):
    reading.add_argument(f"--{name}", type=pathlib.Path, required=is_required, help=text)
  reading.add_argument(
      "--widen", action="store_true",
      help="the model is a language model: give it rows for image codes, mask and padding",
  )  # fmt: skip
  writing = commands.add_parser("to_torch", help="files that PyTorch loads")
  for name, is_required, text in (
      ("checkpoint", True, "run or converted folder"),
      ("image-tokenizer", False, "default: the one in the checkpoint's folder"),
      ("text-tokenizer", False, "default: the one in the checkpoint's folder"),
      ("output", True, "folder to write"),
  ):
    writing.add_argument(f"--{name}", type=pathlib.Path, required=is_required, help=text)
  writing.add_argument("--step", type=int, help=cli.STEP_HELP)
  adapting = commands.add_parser("from_peft", help="a run from an adapter of PEFT's")
  for name, text in (
      ("adapter", "folder with adapter_config.json and adapter_model.safetensors"),
      ("base", "run or converted folder that it adapts"),
      ("output", "folder to write"),
  ):
    adapting.add_argument(f"--{name}", type=pathlib.Path, required=True, help=text)
  sharing = commands.add_parser("to_peft", help="an adapter that PEFT loads")
  for name, is_required, text in (
      ("checkpoint", True, "run with model.adapter"),
      ("torch-base", False, "what to_torch wrote of its base, for PEFT to find by itself"),
      ("output", True, "folder to write"),
  ):
    sharing.add_argument(f"--{name}", type=pathlib.Path, required=is_required, help=text)
  sharing.add_argument("--step", type=int, help=cli.STEP_HELP)
  args = parser.parse_args(argv)
  if args.command == "from_torch":
    job = from_torch.convert(
        args.model, args.vqgan, args.output, args.vqgan_config, args.text_tokenizer,
        args.vocabulary, args.widen,
    )  # fmt: skip
    shape, skipped = job["train"]["model"], job["converted"]["passed_over"]
    print(
        f"{args.output}: {shape['num_layers']} layers of width {shape['width']},"
        f" {shape['vocab_size']} ids; {skipped} tensors of the image tokenizer are for its training"
        " only and were passed over"
    )
  elif args.command == "from_peft":
    job = peft.convert(args.adapter, args.base, args.output)
    print(f"{args.output}: adapts step {job['base']['step']} of {args.base}")
  elif args.command == "to_peft":
    job = peft.export(args.checkpoint, args.output, args.step, args.torch_base)
    base, held = job["base"], job["train"]["model"]["adapter"]["base"]
    print(
        f"{args.output}: written for PEFT; its base is what to_torch writes of"
        f" {job['train']['init']} with --step={base['step']}"
    )
    if held != "float":
      print(
          f"It was trained on that base in {held}, and to_torch does not round: results differ a"
          " little. For the same results, use to_torch on the run itself."
      )
  else:
    to_torch.export(
        args.checkpoint, args.output, args.image_tokenizer, args.text_tokenizer, args.step
    )
    print(f"{args.output}: written for PyTorch")


if __name__ == "__main__":
  cli.entry(main)
