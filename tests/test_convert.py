"""Weights go to PyTorch's files and come back, and what does not fit leaves nothing behind."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from chexmix_jax import convert
from chexmix_jax.conversion import phi, vqgan
from chexmix_jax.conversion.tensors import SafetensorsFiles, write_file, write_safetensors
from chexmix_jax.conversion.torch_file import read_state_dict, write_state_dict
from chexmix_jax.errors import UserError
from chexmix_jax.inference.model import load_model
from chexmix_jax.models import transformer
from chexmix_jax.models.transformer import Transformer, TransformerConfig
from chexmix_jax.models.unstack import unstack_layers
from chexmix_jax.models.vqgan import VQGANConfig
from chexmix_jax.models.vqgan import init_params as init_vqgan
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.load import extend_text_tokenizer, load_text_tokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary

IMAGE = VQGANConfig(
    resolution=16, width=32, channel_multipliers=(1, 1), num_res_blocks=1, z_channels=4,
    embed_dim=4, num_codes=16,
)  # fmt: skip
IDS = {"text": 300, "img": 16, "pad": 2, "boi": 295, "eoi": 296, "eot": 256}
MODEL = TransformerConfig(
    vocab_size=318, num_layers=2, width=32, num_heads=2, mlp_dim=48, rotary_dim=6, dropout=0.1
)


def _write_model(folder: pathlib.Path, config: TransformerConfig, dtype: str = "float32") -> None:
  folder.mkdir(exist_ok=True)
  params = jax.jit(transformer.init_params, static_argnums=0)(config, jax.random.key(0))
  write_safetensors(folder, phi.params_to_torch(config, params), jax.numpy.dtype(dtype))
  settings = phi.config_to_torch(config, eot=256, context=64)
  (folder / "config.json").write_text(json.dumps(settings))


@pytest.fixture
def theirs(tmp_path):
  """A folder with what PyTorch's implementation leaves: model, image tokenizer, ids."""
  folder = tmp_path / "theirs"
  _write_model(folder, MODEL)
  tensors = vqgan.params_to_torch(IMAGE, init_vqgan(IMAGE, jax.random.key(1)))
  training_only = {"loss.discriminator.weight": np.zeros(3, np.float32)}
  arrays = {name: read() for name, _, read in tensors} | training_only
  write_state_dict(folder / "vqgan.ckpt", arrays)
  write_file(folder / "vqgan.safetensors", tensors, np.dtype(np.float32))
  (folder / "vq_gan.yaml").write_text(json.dumps(vqgan.config_to_torch(IMAGE)))  # JSON is yaml.
  (folder / "ids.json").write_text(json.dumps(IDS))
  (folder / "LICENSE.txt").write_text("theirs")
  (folder / "NOTICE").write_text("keep me")
  return folder


def _from_torch(folder: pathlib.Path, output: pathlib.Path, *more: str, **changes: str) -> None:
  paths = {
      "model": folder, "vqgan": folder / "vqgan.ckpt", "vqgan-config": folder / "vq_gan.yaml",
      "vocabulary": folder / "ids.json", **changes,
  }  # fmt: skip
  arguments = [f"--{name}={path}" for name, path in paths.items() if path]
  convert.main(["from_torch", *arguments, f"--output={output}", *more])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_is_bit_identical(theirs, tmp_path, dtype):
  _write_model(theirs, MODEL, dtype)
  ours, back, again = tmp_path / "ours", tmp_path / "back", tmp_path / "again"
  _from_torch(theirs, ours)
  convert.main(["to_torch", f"--checkpoint={ours}", f"--output={back}"])
  before, after = (SafetensorsFiles(folder) for folder in (theirs, back))
  assert dict(before).keys() == dict(after).keys()
  for name in before:
    assert before[name].dtype == after[name].dtype == jax.numpy.dtype(dtype)
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)
  images = [
      read_state_dict(theirs / "vqgan.ckpt"),
      read_state_dict(back / "vqgan.ckpt"),
      SafetensorsFiles(back / "vqgan.safetensors"),
  ]
  assert images[0].pop("loss.discriminator.weight") is not None
  for found in images[1:]:
    assert dict(found).keys() == images[0].keys()
    for name, tensor in images[0].items():
      np.testing.assert_array_equal(found[name], tensor, err_msg=name)
  # What is written is what from_torch takes, ids included.
  assert json.loads((back / "ids.json").read_text()) == IDS
  _from_torch(back, again, vqgan=str(back / "vqgan.safetensors"))
  jobs = [json.loads((folder / "job.json").read_text()) for folder in (ours, again)]
  assert jobs[0]["train"] == jobs[1]["train"] and jobs[0]["tokens"] == jobs[1]["tokens"]
  assert jobs[0]["train"]["model"]["dtype"] == dtype


def test_the_folder_loads_and_keeps_the_notices(theirs, tmp_path, capsys):
  _from_torch(theirs, tmp_path / "ours")
  assert "1 tensors of the image tokenizer" in capsys.readouterr().out
  model = load_model(tmp_path / "ours")
  assert model.config == MODEL
  assert (model.vocabulary.num_text, model.vocabulary.mask) == (295, 316)
  tokens = np.arange(12).reshape(1, 12)
  params = jax.jit(transformer.init_params, static_argnums=0)(MODEL, jax.random.key(0))
  expected = Transformer(MODEL, unstack_layers(params))(tokens)
  np.testing.assert_array_equal(Transformer(model.config, model.params)(tokens), expected)
  assert (tmp_path / "ours" / "LICENSE.txt").read_text() == "theirs"
  notice = (tmp_path / "ours" / "NOTICE").read_text()
  assert "keep me" in notice and "non-commercial" in notice


def test_a_language_model_gets_rows_for_pictures(theirs, tmp_path, bpe_dir):
  # The tokenizer has 273 ids and 38 runs of white space; the model has rows to spare.
  config = TransformerConfig(
      vocab_size=320, num_layers=1, width=32, num_heads=2, mlp_dim=48, rotary_dim=6
  )
  _write_model(theirs, config)
  output = tmp_path / "ours"
  _from_torch(theirs, output, "--widen", f"--text-tokenizer={bpe_dir}", vocabulary="")
  model = load_model(output)
  assert model.vocabulary == Vocabulary.bpe(311, 16)
  before = SafetensorsFiles(theirs)
  table = before["model.embed_tokens.weight"]
  widened = np.asarray(model.params["embed"]["embedding"])
  np.testing.assert_array_equal(widened[:311], table[:311])
  np.testing.assert_allclose(widened[311:], np.tile(table[:311].mean(0), (91, 1)), atol=1e-7)
  bias = np.asarray(model.params["lm_head"]["bias"])
  assert bias.shape == (402,)
  assert (output / "text_tokenizer" / "vocab.json").exists()


def test_an_extended_text_tokenizer_goes_there_and_back(theirs, tmp_path, bpe_dir):
  extended = tmp_path / "extended"
  tokenizer = extend_text_tokenizer(bpe_dir, ("<finding>", "coração"), extended)
  vocabulary = Vocabulary.bpe(311, 16).extended(2)
  ids = {
      "text": 384, "img": 16, "pad": 4, "boi": 311, "eoi": 312, "eot": 272,
      "extra_offset": 402, "extra_text": 2,
  }  # fmt: skip
  _write_model(theirs, dataclasses.replace(MODEL, vocab_size=404, num_layers=1))
  (theirs / "ids.json").write_text(json.dumps(ids))
  ours, back = tmp_path / "ours", tmp_path / "back"
  _from_torch(theirs, ours, f"--text-tokenizer={extended}")
  tokens = json.loads((ours / "job.json").read_text())["tokens"]
  assert Vocabulary(**tokens["vocabulary"]) == vocabulary
  convert.main(["to_torch", f"--checkpoint={ours}", f"--output={back}"])
  assert json.loads((back / "ids.json").read_text()) == ids
  found = load_text_tokenizer(back / "text_tokenizer")
  assert found.fingerprint == tokens["text_tokenizer"] == tokenizer.fingerprint
  with pytest.raises(UserError, match="was extended; name its base"):
    _from_torch(theirs, tmp_path / "w", "--widen", f"--text-tokenizer={extended}", vocabulary="")


@pytest.mark.parametrize(
    "more, changes, message",
    [
        ((), {"model": "gone"}, "gone is not there"),
        ((), {"vqgan": "gone"}, "gone cannot be read"),
        ((), {"vqgan-config": "gone"}, "gone cannot be read"),
        ((), {"vocabulary": "gone"}, "gone is no JSON"),
        ((), {"vocabulary": ""}, "--vocabulary"),
        ((), {"text-tokenizer": "gone"}, "gone is no text tokenizer"),
        (("--widen",), {}, "leave --vocabulary out"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(theirs, tmp_path, more, changes, message):
  with pytest.raises(UserError, match=message):
    _from_torch(theirs, tmp_path / "ours", *more, **changes)
  assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_files_of_two_models_are_refused(theirs, tmp_path, bpe_dir):
  with pytest.raises(UserError, match=r"has 311 ids, but the vocabulary has 295"):
    _from_torch(theirs, tmp_path / "ours", f"--text-tokenizer={bpe_dir}")
  (theirs / "ids.json").write_text(json.dumps(IDS | {"img": 8, "pad": 10}))
  with pytest.raises(UserError, match="16 codes, but the vocabulary 318 rows and 8 codes"):
    _from_torch(theirs, tmp_path / "ours")
  (tmp_path / "ours").mkdir()
  with pytest.raises(UserError, match="is there already"):
    _from_torch(theirs, tmp_path / "ours")


def test_an_adapted_image_tokenizer_is_written_in_place_of_the_models_own(theirs, tmp_path):
  _write_model(theirs, MODEL)
  _from_torch(theirs, tmp_path / "ours")
  own = ImageTokenizer.load(tmp_path / "ours" / "image_tokenizer")
  params = jax.tree.map(np.asarray, own.params)
  params["decoder"]["conv_out"]["bias"] = params["decoder"]["conv_out"]["bias"] + 1
  for name, codes_of in (("adapted", own.fingerprint), ("another", "")):
    ImageTokenizer(own.config, params, codes_of).save(tmp_path / name)
  command = ["to_torch", f"--checkpoint={tmp_path / 'ours'}", f"--output={tmp_path / 'back'}"]
  with pytest.raises(UserError, match="another is another image tokenizer than that of"):
    convert.main([*command, f"--image-tokenizer={tmp_path / 'another'}"])
  convert.main([*command, f"--image-tokenizer={tmp_path / 'adapted'}"])
  before, after = (read_state_dict(f / "vqgan.ckpt") for f in (theirs, tmp_path / "back"))
  differing = {name for name in after if not np.array_equal(after[name], before[name])}
  assert differing == {"decoder.conv_out.bias"}


def test_transformers_loads_what_is_written(theirs, tmp_path):
  torch = pytest.importorskip("torch", reason="torch is not installed")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  _from_torch(theirs, tmp_path / "ours")
  convert.main(["to_torch", f"--checkpoint={tmp_path / 'ours'}", f"--output={tmp_path / 'back'}"])
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
  assert type(model).__name__ == "PhiForCausalLM"
  tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (2, 20))
  with torch.no_grad():
    theirs_BTV = model(torch.tensor(tokens)).logits.numpy()
  ours = load_model(tmp_path / "ours")
  np.testing.assert_allclose(
      Transformer(ours.config, ours.params)(tokens), theirs_BTV, atol=1e-4, rtol=0
  )
