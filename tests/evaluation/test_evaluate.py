import dataclasses
import json
from typing import ClassVar

import numpy as np
import orbax.checkpoint as ocp
import pytest

from chexmix_jax import cli, evaluate
from chexmix_jax import config as config_lib
from chexmix_jax.data import tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.classification import Classification, ClassificationConfig
from chexmix_jax.evaluation.evaluator import Result
from chexmix_jax.tokenizers.vocabulary import Vocabulary

REAL = list(evaluate.EVALUATIONS)  # The tests put fakes in their place.


@dataclasses.dataclass(frozen=True)
class FakeConfig:
  offset: float = 0.0


class Fake:
  """Gives the mean of the parameters, and keeps what it was made with."""

  made: ClassVar[list] = []

  def __init__(self, context, config):
    Fake.made.append((context, config))
    self._offset = config.offset

  def run(self, params):
    bias = float(params["lm_head"]["bias"].mean()) + self._offset
    return Result({"score": bias, "chance/score": 0.5, "undefined": np.nan}, {"x": np.arange(3)})


@pytest.fixture
def write_run(tmp_path, context, params):
  """Writes a run directory with checkpoints of the tiny model at some steps."""

  def write(name="run", steps=(3,), vocabulary=context.vocabulary):
    folder = tmp_path / name
    card = tokens.read_card(context.tokens) | {"vocabulary": vocabulary.to_dict()}
    job = {"train": {"model": config_lib.to_dict(context.model)}, "tokens": card}
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
      for step in steps:
        bias = params["lm_head"]["bias"] + step
        changed = {**params, "lm_head": {**params["lm_head"], "bias": bias}}
        manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(changed)))
    (folder / "job.json").write_text(json.dumps(job))
    return folder

  return write


@pytest.fixture
def inputs(tmp_path, context, text_tokenizer_path):
  """The arguments but for checkpoint and output."""
  context.image_tokenizer.save(tmp_path / "image_tokenizer")
  return [
      f"--studies={context.studies}", f"--tokens={context.tokens}",
      f"--image_tokenizer={tmp_path / 'image_tokenizer'}",
      f"--text_tokenizer={text_tokenizer_path}",
  ]  # fmt: skip


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
  Fake.made.clear()
  registry = {"first": (Fake, FakeConfig()), "second": (Fake, FakeConfig(10.0))}
  monkeypatch.setattr(evaluate, "EVALUATIONS", registry)
  return registry


def read(path):
  return json.loads(path.read_text())


def test_the_registry_has_the_four_evaluations():
  assert REAL == ["classification", "inpainting", "generation", "retrieval"]


def test_results_are_written_and_not_made_twice(write_run, inputs, tmp_path, context, capsys):
  run, output = write_run(), tmp_path / "out"
  arguments = [f"--checkpoint={run}", f"--output={output}", *inputs]
  evaluate.main(arguments)
  found = read(output / "second.json")
  assert found.pop("values") == {"score": 13.0, "chance/score": 0.5}
  assert found.pop("seconds") >= 0 and len(found.pop("inputs")) == 64
  assert found == {"evaluation": "second", "checkpoint_step": 3, "seed": 0, "split": "test"}
  np.testing.assert_array_equal(np.load(output / "second.npz")["x"], np.arange(3))
  printed = capsys.readouterr().out
  assert "  score        13  chance 0.500\n" in printed
  assert "second: undefined and left out: undefined" in printed
  assert sorted(p.name for p in output.iterdir()) == [
      "first.json", "first.npz", "second.json", "second.npz",
  ]  # fmt: skip
  # The evaluations see what belongs together.
  made, _ = Fake.made[0]
  assert made.vocabulary == context.vocabulary and made.studies == context.studies
  assert made.image_tokenizer.fingerprint == context.image_tokenizer.fingerprint

  evaluate.main(arguments)
  assert len(Fake.made) == 2 and "first of step 3: finished before" in capsys.readouterr().out
  evaluate.main([*arguments, "--seed=1", "--evaluations=first"])
  assert len(Fake.made) == 3 and read(output / "first.json")["seed"] == 1


def test_another_step_another_config_or_another_run_is_evaluated_again(
    write_run, inputs, tmp_path, fakes
):
  run, output = write_run(steps=(3, 4)), tmp_path / "out"
  arguments = [f"--checkpoint={run}", f"--output={output}", "--evaluations=first", *inputs]
  evaluate.main(arguments)
  assert read(output / "first.json")["values"]["score"] == 4  # The newest.
  evaluate.main([*arguments, "--step=3"])
  assert read(output / "first.json")["values"]["score"] == 3
  fakes["first"] = (Fake, FakeConfig(100.0))
  evaluate.main([*arguments, "--step=3"])
  assert read(output / "first.json")["values"]["score"] == 103
  job = read(run / "job.json")
  (run / "job.json").write_text(json.dumps(job | {"seed": 7}))
  evaluate.main([*arguments, "--step=3"])
  assert len(Fake.made) == 4
  evaluate.main([*arguments, f"--checkpoint={write_run('copy')}", f"--output={tmp_path / 'b'}"])
  assert len(Fake.made) == 5
  evaluate.main([*arguments[1:], f"--checkpoint={tmp_path / 'copy'}"])
  assert len(Fake.made) == 6


def test_several_checkpoints_share_what_does_not_depend_on_them(write_run, inputs, tmp_path):
  pairs = []
  for name, step in (("stage1", 3), ("stage2", 5)):
    pairs += [f"--checkpoint={write_run(name, (step,))}", f"--output={tmp_path / 'out' / name}"]
  evaluate.main([*pairs, *inputs])
  assert len(Fake.made) == 2
  assert read(tmp_path / "out/stage1/first.json")["values"]["score"] == 3
  assert read(tmp_path / "out/stage2/first.json")["values"]["score"] == 5
  with pytest.raises(UserError, match="2 --checkpoint and 1 --output"):
    evaluate.main([*pairs[:-1], *inputs])


def test_a_real_evaluation_of_a_checkpoint(write_run, inputs, tmp_path, context, params, fakes):
  config = ClassificationConfig(mask_ratios=(0.0,))
  fakes["first"] = (Classification, config)
  output = tmp_path / "out"
  evaluate.main([
      f"--checkpoint={write_run(steps=(0,))}", f"--output={output}", "--evaluations=first", *inputs,
  ])  # fmt: skip
  assert read(output / "first.json")["values"] == Classification(context, config).run(params).values
  np.load(output / "first.npz", allow_pickle=False)["study_ids"]


def test_inputs_that_do_not_belong_together(write_run, inputs, tmp_path, context, studies_dir):
  output = tmp_path / "out"

  def main(*changes, run=None):
    evaluate.main([f"--checkpoint={run or write_run()}", f"--output={output}", *inputs, *changes])

  other = Vocabulary.sentencepiece(context.vocabulary.num_text, 64)
  with pytest.raises(UserError, match="another vocabulary"):
    main(run=write_run("other", vocabulary=other))
  changed = dataclasses.replace(context.image_tokenizer.config, commitment=0.5)
  type(context.image_tokenizer)(changed, context.image_tokenizer.params).save(tmp_path / "changed")
  with pytest.raises(UserError, match="another image tokenizer"):
    main(f"--image_tokenizer={tmp_path / 'changed'}")
  with pytest.raises(UserError, match="not a run directory"):
    main(run=tmp_path / "nothing")
  with pytest.raises(UserError, match="has no checkpoint"):
    main("--step=9")
  with pytest.raises(UserError, match="did you mean 'second'"):
    main("--evaluations=first,secnd")
  with pytest.raises(UserError, match="--seed=-1"):
    main("--seed=-1")
  card = read(studies_dir / "dataset_card.json")
  copy = tmp_path / "studies"
  copy.mkdir()
  for path in studies_dir.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
  (copy / "dataset_card.json").write_text(json.dumps(card | {"request": {"source": "other"}}))
  with pytest.raises(UserError, match="made from other studies"):
    main(f"--studies={copy}")
  assert not output.exists() and not Fake.made


def test_an_error_is_one_sentence_and_status_2(inputs, tmp_path, capsys):
  arguments = [f"--checkpoint={tmp_path / 'none'}", f"--output={tmp_path / 'out'}", *inputs]
  with pytest.raises(SystemExit) as stop:
    cli.entry(lambda: evaluate.main(arguments))
  assert stop.value.code == 2
  assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'} is not a run directory")


def test_the_table_sets_baselines_beside_their_figures():
  table = evaluate.format_table({
      "num_test": 600.0, "auroc/mask=0.00": 0.8614, "auroc/mask=0.00/layer=1": 0.7,
      "random_init/auroc/mask=0.00": 0.5, "chance/auroc/mask=0.00": 0.25,
  })  # fmt: skip
  assert table.splitlines() == [
      "  num_test              600",
      "  auroc/mask=0.00     0.861  random_init 0.500  chance 0.250",
  ]
