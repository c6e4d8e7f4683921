"""Adapters go to PEFT's files and come back, with names, layouts and results as PEFT has them."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from chexmix_jax import config as config_lib
from chexmix_jax import convert
from chexmix_jax.conversion.tensors import SafetensorsFiles, write_file
from chexmix_jax.errors import UserError
from chexmix_jax.inference.model import load_model
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.models.transformer import Transformer, TransformerConfig, abstract_params
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.base import describe_base
from chexmix_jax.training.trainable import prepare_params

VOCABULARY = Vocabulary.sentencepiece(30, 8)
MODEL = TransformerConfig(
    vocab_size=VOCABULARY.size, num_layers=2, width=32, num_heads=2, mlp_dim=48, rotary_dim=6,
    qk_norm=True,
)  # fmt: skip
IDS = np.random.default_rng(0).integers(0, VOCABULARY.size, (2, 11))
FILE = "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.1"

# As PEFT 0.21.2 writes it for q_proj and dense, with two modules saved whole.
PEFT_SETTINGS = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None,
    "auto_mapping": None, "base_model_name_or_path": None, "bias": "none", "corda_config": None,
    "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None,
    "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 5, "lora_bias": False,
    "lora_dropout": 0.0, "lora_ga_config": None, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": ["lm_head", "input_layernorm"],
    "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2",
    "qalora_group_size": 16, "r": 3, "rank_pattern": {}, "revision": None,
    "target_modules": ["q_proj", "dense"], "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_bdlora": None, "use_dora": True, "use_qalora": False,
    "use_rslora": False, "velora_config": None,
}  # fmt: skip
PEFT_TENSORS = {
    "base_model.model.lm_head.bias": (VOCABULARY.size,),
    "base_model.model.lm_head.weight": (VOCABULARY.size, 32),
} | {
    f"base_model.model.model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "input_layernorm.bias": (32,),
        "input_layernorm.weight": (32,),
        "self_attn.dense.lora_A.weight": (3, 32),
        "self_attn.dense.lora_B.weight": (32, 3),
        "self_attn.dense.lora_magnitude_vector": (32,),
        "self_attn.q_proj.lora_A.weight": (3, 32),
        "self_attn.q_proj.lora_B.weight": (32, 3),
        "self_attn.q_proj.lora_magnitude_vector": (32,),
    }.items()
}


def _random(shapes, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)


def _write_run(folder, job, params):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / "checkpoints" / "7" / "params", params)
  tokens = {
      "vocabulary": VOCABULARY.to_dict(), "image_tokenizer": "a", "text_tokenizer": None,
  }  # fmt: skip
  (folder / "job.json").write_text(json.dumps({**job, "tokens": tokens}))
  return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
  """A run that was trained whole."""
  folder = tmp_path_factory.mktemp("peft") / "base"
  job = {"train": {"model": config_lib.to_dict(MODEL)}}
  params = _random(abstract_params(MODEL), 1)
  folder = _write_run(folder, job, params)
  (folder / "NOTICE").write_text("keep me")
  return folder


@pytest.fixture
def adapted(base, tmp_path):
  """Makes a run that adapts it."""

  def make(name="run", **settings):
    adapter = AdapterConfig(**{"rank": 3, "alpha": 5.0, **settings})
    config = dataclasses.replace(MODEL, adapter=adapter)
    job = {
        "train": {"model": config_lib.to_dict(config), "init": str(base)},
        "base": describe_base(base),
    }
    shapes = jax.eval_shape(lambda: prepare_params(config, jax.random.key(0)))[0]
    return _write_run(tmp_path / name, job, _random(shapes, 2))

  return make


def _to_peft(run, output, *more):
  convert.main(["to_peft", f"--checkpoint={run}", f"--output={output}", *more])
  return SafetensorsFiles(output / FILE), _settings(output)


def _to_torch(run, output):
  convert.main(["to_torch", f"--checkpoint={run}", f"--output={output}"])
  return SafetensorsFiles(output)


def _from_peft(folder, base, output):
  convert.main(["from_peft", f"--adapter={folder}", f"--base={base}", f"--output={output}"])


def _settings(folder):
  return json.loads((folder / "adapter_config.json").read_text())


def _logits(model):
  return np.asarray(Transformer(model.config, model.params)(IDS))


def _saved(run, step=7):
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(run / "checkpoints" / str(step) / "params")


def _write_adapter(folder, tensors=PEFT_TENSORS, **changes):
  folder.mkdir()
  rng = np.random.default_rng(3)
  drawn = {name: 0.3 * rng.normal(size=shape) for name, shape in tensors.items()}
  drawn = {name: array.astype(np.float32) for name, array in drawn.items()}
  sources = [(name, tensor.shape, lambda tensor=tensor: tensor) for name, tensor in drawn.items()]
  write_file(folder / FILE, sources, np.dtype(np.float32))
  (folder / "adapter_config.json").write_text(json.dumps(PEFT_SETTINGS | changes))
  return drawn


def test_names_and_layouts(adapted, base, tmp_path, capsys):
  run = adapted(kind="dora", targets=("attn.q", "attn.out"), train=("layers.norm.*", "lm_head.*"))
  tensors, settings = _to_peft(run, tmp_path / "out")
  assert f"what to_torch writes of {base} with --step=7" in capsys.readouterr().out
  assert tensors.shapes == PEFT_TENSORS
  order = {key: sorted(settings[key]) for key in ("target_modules", "modules_to_save")}
  expected = {key: sorted(PEFT_SETTINGS[key]) for key in order}
  assert order == expected
  for key in settings.keys() - order.keys():
    assert settings[key] == PEFT_SETTINGS[key], key
  attn = _saved(run)["layers"]["attn"]
  q, out = (f"{LAYER}.self_attn.{name}" for name in ("q_proj", "dense"))
  # Number 21 of the heads is head 1, dimension 5.
  assert tensors[f"{q}.lora_A.weight"][2, 30] == attn["q"]["lora_a"][1, 30, 2]
  assert tensors[f"{q}.lora_B.weight"][21, 2] == attn["q"]["lora_b"][1, 2, 1, 5]
  assert tensors[f"{q}.lora_magnitude_vector"][21] == attn["q"]["magnitude"][1, 1, 5]
  assert tensors[f"{out}.lora_A.weight"][2, 21] == attn["out"]["lora_a"][1, 1, 5, 2]
  assert tensors[f"{out}.lora_B.weight"][30, 2] == attn["out"]["lora_b"][1, 2, 30]
  assert (tmp_path / "out" / "NOTICE").read_text() == "keep me"


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_formula_makes_the_merged_model(kind, adapted, base, tmp_path):
  """PEFT adds lora_alpha / r · B · A, and DoRA scales every row of the sum to its magnitude."""
  run = adapted(kind=kind, rows=(30, 36), train=("final_norm.scale",))
  tensors, settings = _to_peft(run, tmp_path / "out")
  plain = dict(_to_torch(base, tmp_path / "base"))
  merged = _to_torch(run, tmp_path / "merged")
  for name in settings["modules_to_save"]:
    own = [tensor for tensor in plain if tensor.rsplit(".", 2)[-2] == name]
    assert own
    plain |= {tensor: tensors[f"base_model.model.{tensor}"] for tensor in own}
  assert sorted(settings["target_modules"]) == ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"]
  assert settings["modules_to_save"] == ["embed_tokens", "final_layernorm", "lm_head"]
  for name in plain:
    module = f"base_model.model.{name.removesuffix('.weight')}"
    if f"{module}.lora_A.weight" in tensors:
      a, b = (tensors[f"{module}.lora_{side}.weight"] for side in "AB")
      plain[name] = plain[name] + settings["lora_alpha"] / settings["r"] * b @ a
      if kind == "dora":
        length = np.linalg.norm(plain[name], axis=1, keepdims=True)
        plain[name] *= tensors[f"{module}.lora_magnitude_vector"][:, None] / length
    np.testing.assert_allclose(merged[name], plain[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_there_and_back(kind, adapted, base, tmp_path):
  run = adapted(kind=kind, targets=("attn.v", "mlp.*"), dropout=0.1, train=("layers.norm.*",))
  _to_peft(run, tmp_path / "out", "--step=7")
  _from_peft(tmp_path / "out", base, tmp_path / "back")
  ours, theirs = _saved(run), _saved(tmp_path / "back", 0)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  jobs = [json.loads((folder / "job.json").read_text()) for folder in (run, tmp_path / "back")]
  del jobs[1]["converted"]
  assert config_lib.differing(*jobs) == ["train.model.adapter.targets"]
  _to_peft(tmp_path / "back", tmp_path / "again")
  for name in ("adapter_config.json", FILE, "NOTICE"):
    first, second = (tmp_path / folder / name for folder in ("out", "again"))
    assert first.read_bytes() == second.read_bytes(), name


def test_what_peft_wrote_is_read(base, tmp_path):
  drawn = _write_adapter(tmp_path / "theirs", use_rslora=True)
  _from_peft(tmp_path / "theirs", base, tmp_path / "ours")
  job = json.loads((tmp_path / "ours" / "job.json").read_text())
  adapter = config_lib.build(AdapterConfig, job["train"]["model"]["adapter"])
  assert (adapter.kind, adapter.rank, adapter.targets) == ("dora", 3, ("attn.out", "attn.q"))
  np.testing.assert_allclose(adapter.scale, 5 / np.sqrt(3))
  merged = _to_torch(tmp_path / "ours", tmp_path / "merged")
  name = "base_model.model.lm_head.weight"
  np.testing.assert_array_equal(merged["lm_head.weight"], drawn[name])
  lengths = np.linalg.norm(merged["model.layers.1.self_attn.dense.weight"], axis=1)
  magnitude = drawn[f"{LAYER}.self_attn.dense.lora_magnitude_vector"]
  np.testing.assert_allclose(lengths, np.abs(magnitude), rtol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "IA3"}, "kind 'IA3'; only LORA"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank_pattern="),
        ({"alpha_pattern": {"q_proj": 4}, "bias": "all"}, "has alpha_pattern=.*bias='all'"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa'"),
        ({"layers_to_transform": [1]}, r"has layers_to_transform=\[1\]"),
        ({"a_later_invention": True}, "has a_later_invention=True"),
        ({"target_modules": "all-linear"}, "target_modules='all-linear'; it must be a list of q_"),
        ({"target_modules": ["q_proj", "w"]}, r"target_modules=\['q_proj', 'w'\]"),
        ({"modules_to_save": ["dense"]}, "dense in target_modules and in modules_to_save"),
        ({"r": "3"}, "rank='3' must be of type int"),
    ],
)
def test_what_is_not_done_is_refused(base, tmp_path, changes, message):
  _write_adapter(tmp_path / "theirs", **changes)
  with pytest.raises(UserError, match=message):
    _from_peft(tmp_path / "theirs", base, tmp_path / "ours")
  assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_every_tensor_that_does_not_fit_is_named(base, tmp_path):
  tensors = dict(PEFT_TENSORS)
  del tensors[f"{LAYER}.self_attn.dense.lora_A.weight"]
  tensors[f"{LAYER}.self_attn.q_proj.lora_A.weight"] = (4, 32)
  tensors[f"{LAYER}.mlp.fc1.lora_A.weight"] = (3, 32)
  _write_adapter(tmp_path / "theirs", tensors)
  with pytest.raises(UserError) as error:
    _from_peft(tmp_path / "theirs", base, tmp_path / "ours")
  message = str(error.value)
  assert f"missing: {LAYER}.self_attn.dense.lora_A.weight" in message
  assert f"unexpected: {LAYER}.mlp.fc1.lora_A.weight" in message
  assert "q_proj.lora_A.weight (4, 32) instead of (3, 32)" in message
  (tmp_path / "theirs" / "adapter_config.json").unlink()
  with pytest.raises(UserError, match=r"adapter_config\.json is not there"):
    _from_peft(tmp_path / "theirs", base, tmp_path / "ours")


def test_runs_that_peft_has_no_place_for(adapted, base, tmp_path):
  runs = {
      "was trained without model.adapter; use to_torch": base,
      "bias or kernel of attn.q beside its addition.*to_torch": adapted(
          "biases", train=("layers.attn.q.bias",)
      ),
      "trained no additions.*to_torch": adapted("rows", targets=(), rows=(30, 36)),
  }
  for message, run in runs.items():
    with pytest.raises(UserError, match=message):
      _to_peft(run, tmp_path / "out")
  run = adapted()
  with pytest.raises(UserError, match="no checkpoint of step 3"):
    _to_peft(run, tmp_path / "out", "--step=3")
  with pytest.raises(UserError, match=r"has no config\.json; name what to_torch"):
    _to_peft(run, tmp_path / "out", f"--torch-base={base}")
  with pytest.raises(UserError, match="adapts another run already"):
    _write_adapter(tmp_path / "theirs")
    _from_peft(tmp_path / "theirs", run, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  (tmp_path / "out").mkdir()
  with pytest.raises(UserError, match="is there already"):
    _to_peft(run, tmp_path / "out")


def test_a_rounded_base_is_told(adapted, tmp_path, capsys):
  _to_peft(adapted(base="int8"), tmp_path / "out")
  assert "trained on that base in int8, and to_torch does not round" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "lora", "alpha": 4.5},
        {
            "kind": "dora", "targets": ("attn.out", "mlp.down"), "dropout": 0.5,
            "train": ("layers.mlp.up.bias",),
        },
        {"kind": "dora", "rows": (30, 36), "train": ("layers.norm.*", "layers.attn.k_norm.scale")},
    ],
)
def test_peft_loads_it_and_does_the_same(settings, adapted, base, tmp_path):
  torch = pytest.importorskip("torch", reason="torch is not installed")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  peft = pytest.importorskip("peft", reason="peft is not installed")
  run = adapted(**settings)
  _to_torch(base, tmp_path / "base")
  _to_peft(run, tmp_path / "out", f"--torch-base={tmp_path / 'base'}")
  expected = _logits(load_model(run))

  def theirs(model):
    with torch.no_grad():
      return model.eval()(torch.tensor(IDS)).logits.numpy()

  plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
  before = theirs(plain)
  assert np.abs(before - expected).max() > 0.01
  with warnings.catch_warnings():
    # It warns of tensors that it misses.
    warnings.filterwarnings("error", message=".*missing adapter keys")
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "out")
  np.testing.assert_allclose(theirs(model), expected, atol=1e-4, rtol=0)
  by_itself = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
  np.testing.assert_allclose(theirs(by_itself), expected, atol=1e-4, rtol=0)
  # What PEFT writes is what we wrote, and what we read.
  model.save_pretrained(tmp_path / "again")
  _from_peft(tmp_path / "again", base, tmp_path / "back")
  written, again = (SafetensorsFiles(tmp_path / name / FILE) for name in ("out", "again"))
  assert written.shapes == again.shapes
  for name in written:
    np.testing.assert_array_equal(written[name], again[name], err_msg=name)
  merged = model.merge_and_unload()
  np.testing.assert_allclose(theirs(merged), expected, atol=1e-4, rtol=0)
  ours = _to_torch(run, tmp_path / "merged")
  found = merged.state_dict()
  assert found.keys() == ours.shapes.keys()
  for name, tensor in found.items():
    np.testing.assert_allclose(tensor.numpy(), ours[name], atol=1e-5, rtol=0, err_msg=name)
