"""The files in configs/: each builds, lists every setting, and has the published shape."""

import dataclasses
import json
import pathlib

import jax
import pytest

from chexmix_jax import cli, config
from chexmix_jax.ablation import AblationConfig
from chexmix_jax.adaptation import AdaptationConfig
from chexmix_jax.data.documents import parse_forms
from chexmix_jax.data.masking import MaskingConfig
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.run import EvaluateConfig
from chexmix_jax.models import transformer, vqgan
from chexmix_jax.parallel.mesh import make_mesh
from chexmix_jax.parallel.sharding import param_shardings
from chexmix_jax.quickstart import QuickstartConfig
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.train_image_tokenizer import ImageTokenizerConfig
from chexmix_jax.training.logging import count_parameters
from chexmix_jax.training.setup import TrainConfig

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
FILES = {
    "quickstart.py:phantom": QuickstartConfig,
    "quickstart.py:real": QuickstartConfig,
    "ablation.py:phantom": AblationConfig,
    "ablation.py:real": AblationConfig,
    "adaptation.py": AdaptationConfig,
    "evaluate.py:quick": EvaluateConfig,
    "evaluate.py:paper": EvaluateConfig,
    "evaluate.py:nih14": EvaluateConfig,
    "evaluate.py:validation": EvaluateConfig,
    "stage1_2p8b.py": TrainConfig,
    "stage2_2p8b.py": TrainConfig,
    "finetune_report.py": TrainConfig,
    "finetune_classification.py": TrainConfig,
    "finetune_vqa.py": TrainConfig,
    "finetune_labels.py": TrainConfig,
    "finetune_masked_image.py": TrainConfig,
    "image_tokenizer_512.py": ImageTokenizerConfig,
    "finetune_image_tokenizer.py": ImageTokenizerConfig,
}

# The others say what differs.
LARGE = [name for name, schema in FILES.items() if schema in (TrainConfig, ImageTokenizerConfig)]


def build(name, *overrides):
  values, rest = cli.load_config([f"--config={CONFIGS / name}", *overrides])
  assert not rest
  return config.build(FILES.get(name, TrainConfig), values.to_dict())


def test_every_file_is_tested():
  names = {name.split(":")[0] for name in FILES}
  assert names == {path.name for path in CONFIGS.glob("*.py")}


@pytest.mark.parametrize("name", FILES)
def test_a_config_builds(name):
  assert isinstance(build(name), FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_a_config_builds_from_all_its_settings(name):
  """As the commands build it, which let every setting be overridden."""
  values, _ = cli.load_config([f"--config={CONFIGS / name}"], schema=FILES[name])
  assert config.build(FILES[name], values.to_dict()) == build(name)


@pytest.mark.parametrize("name", LARGE)
def test_the_large_configs_list_every_setting(name):
  values, _ = cli.load_config([f"--config={CONFIGS / name}"])
  assert values.to_dict() == config.to_dict(build(name))


@pytest.mark.parametrize("name", [*LARGE, "quickstart.py:phantom"])
def test_a_misspelt_override_is_refused_with_a_hint(name):
  group = "stage1." if "quickstart" in name else "train." if "tokenizer" in name else ""
  key = f"{group}stpes"
  with pytest.raises(UserError, match=r"stpes is not a setting of .*'steps'\?"):
    build(name, f"--config.{key}=1")


@pytest.mark.parametrize("name", ["stage1_2p8b.py", "stage2_2p8b.py"])
def test_both_stages_have_the_published_shape(name):
  model = build(name).model
  assert model == transformer.TransformerConfig(dtype="bfloat16", remat="full")
  assert model.vocab_size == Vocabulary.published().size
  assert count_parameters(transformer.abstract_params(model)) == 2_817_384_642
  assert build(name).data.context == 4608


def test_stage_1_masks_nothing_and_stage_2_goes_on_from_it():
  one, two = build("stage1_2p8b.py"), build("stage2_2p8b.py")
  assert one.data.masking == MaskingConfig() and one.init == ""
  assert two.data.masking.image.prob > 0 and two.data.masking.text.prob > 0
  assert two.init.endswith("stage1")
  assert two.data.tokens == one.data.tokens


@pytest.mark.parametrize(
    ("name", "written"),
    [("report", "report"), ("labels", "labels"), ("vqa", "answer"), ("masked_image", "image")],
)
def test_the_tasks_differ_in_their_documents_alone(name, written):
  report, task = build("finetune_report.py"), build(f"finetune_{name}.py")
  assert dataclasses.replace(task, data=report.data) == report
  assert task.data.tokens == report.data.tokens and task.data.batch_size == report.data.batch_size
  for form in parse_forms(task.data.documents):
    assert set(form.parts) - set(form.prompts) == {written}
    assert form.min_context(1024) <= task.data.context
  assert (task.data.masking.image.prob > 0) == (name == "masked_image")


def test_the_image_tokenizer_has_the_published_shape():
  model = build("image_tokenizer_512.py").model
  assert build("finetune_image_tokenizer.py").model == model
  assert model == vqgan.VQGANConfig()
  assert model.grid == (32, 32)
  assert round(count_parameters(vqgan.abstract_params(model)) / 1e6, 1) == 68.7


def test_the_published_shape_is_split_over_all_devices():
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  settings = build("stage1_2p8b.py")
  mesh = make_mesh(settings.mesh)
  assert mesh.shape["fsdp"] == jax.device_count()
  params = transformer.abstract_params(settings.model)
  kernel = param_shardings(mesh, params)["layers"]["mlp"]["up"]["kernel"]
  shape = params["layers"]["mlp"]["up"]["kernel"].shape
  assert kernel.shard_shape(shape) == (32, 2560 // mesh.shape["fsdp"], 10240)


def test_overrides_reach_the_dataclass():
  settings = build(
      "stage1_2p8b.py",
      "--config.steps=100",
      "--config.optimizer.learning_rate=1e-4",
      "--config.model.dtype=float32",
      "--config.mesh.tensor=2",
  )
  assert settings.steps == 100 and settings.optimizer.learning_rate == 1e-4
  assert settings.model.dtype == "float32" and settings.mesh.tensor == 2
  tokenizer = build("image_tokenizer_512.py", "--config.model.channel_multipliers=(1,2)")
  assert tokenizer.model.channel_multipliers == (1, 2)
  with pytest.raises(UserError, match=r"config\.model\.dtype='float16' must be one of"):
    build("stage1_2p8b.py", "--config.model.dtype=float16")


def test_an_adapter_or_all_of_the_model_is_trained():
  assert build("finetune_report.py").model.adapter.rank == 16
  assert build("finetune_vqa.py", "--config.model.adapter=None").model.adapter is None
  with pytest.raises(UserError, match="masking must be a group of settings, not None"):
    build("finetune_vqa.py", "--config.data.masking=None")


def test_the_shape_is_that_of_the_run_that_is_named(tmp_path):
  ours = transformer.TransformerConfig(num_layers=8, width=64, num_heads=2, mlp_dim=128)
  job = {"train": {"model": config.to_dict(ours)}}
  (tmp_path / "job.json").write_text(json.dumps(job))
  found = build(f"finetune_classification.py:{tmp_path}")
  assert found.init == str(tmp_path)
  assert (found.model.num_layers, found.model.width, found.model.mlp_dim) == (8, 64, 128)
  assert found.model.classifier.layer == 3 and found.model.dtype == "bfloat16"
