import csv
import dataclasses
import importlib.metadata
import json
import shutil
from typing import ClassVar

import numpy as np
import orbax.checkpoint as ocp
import pytest

from chexmix_jax import cli, evaluate, train
from chexmix_jax import config as config_lib
from chexmix_jax.data import tokens
from chexmix_jax.data.pipeline import DataConfig
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import run, summary
from chexmix_jax.evaluation.classification import Classification, ClassificationConfig
from chexmix_jax.evaluation.evaluator import Result
from chexmix_jax.evaluation.retrieval import RetrievalConfig
from chexmix_jax.metrics import bootstrap
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.setup import TrainConfig
from chexmix_jax.training.validation import EvaluationInputs, ValidationConfig

REAL = list(run.EVALUATIONS)  # The tests put fakes in their place.


class Fake:
  """Gives the mean of the parameters, and keeps what it was made with."""

  made: ClassVar[list] = []

  def __init__(self, context, config):
    Fake.made.append((context, config))
    self._offset = 10.0 * isinstance(config, RetrievalConfig)

  def run(self, params):
    bias = float(params["lm_head"]["bias"].mean()) + self._offset
    return Result(
        {"chance/score": 0.5},
        {"x": np.arange(3)},
        {
            "score": bootstrap.mean(bias + np.array([-1.0, 0.0, 0.0, 1.0])),
            "undefined": bootstrap.mean(np.full(4, np.nan)),
        },
        ["a", "b", "b", "c"],
        {"policy": "mixed"},
    )


@pytest.fixture
def write_run(tmp_path, context, params):
  """Writes a run directory with checkpoints of the tiny model at some steps."""

  def write(name="run", steps=(3,), vocabulary=context.vocabulary, last=None):
    folder = tmp_path / name
    card = tokens.read_card(context.tokens) | {"vocabulary": vocabulary.to_dict()}
    settings = {"model": config_lib.to_dict(context.model), "steps": last or max(steps)}
    job = {"train": settings, "tokens": card}
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
  registry = {"classification": Fake, "retrieval": Fake}
  for module in (evaluate, run):
    monkeypatch.setattr(module, "EVALUATIONS", registry)
  return registry


def read(path):
  return json.loads(path.read_text())


def test_the_registry_has_the_evaluations():
  assert REAL == ["classification", "zero_shot", "inpainting", "generation", "retrieval"]
  settings = {field.name for field in dataclasses.fields(run.EvaluateConfig)}
  assert {*REAL} <= settings and tuple(REAL) == summary.EVALUATIONS


def test_results_are_written_and_not_made_twice(write_run, inputs, tmp_path, context, capsys):
  folder, output = write_run(), tmp_path / "out"
  arguments = [f"--checkpoint={folder}", f"--output={output}", *inputs]
  evaluate.main(arguments)
  found = read(output / "retrieval.json")
  assert found.pop("values") == {"score": 13.0, "chance/score": 0.5}
  assert found.pop("seconds") >= 0
  low, high = found.pop("intervals")["score"]
  assert 12 <= low < 13 < high <= 14
  inputs_hash = found.pop("inputs")
  version = importlib.metadata.version("chexmix-jax")
  signature = (
      f"chexmix_jax:{version}|evaluation:retrieval|policy:mixed|split:test|studies:4|patients:3"
      f"|interval:95%,patients,1000|seed:0|checkpoint:run@3|inputs:{inputs_hash[:8]}"
  )
  assert found == {
      "evaluation": "retrieval", "checkpoint": "run", "checkpoint_step": 3, "seed": 0,
      "split": "test", "signature": signature,
  }  # fmt: skip
  np.testing.assert_array_equal(np.load(output / "retrieval.npz")["x"], np.arange(3))
  printed = capsys.readouterr().out
  assert "retrieval of step 3, " in printed
  assert "retrieval: undefined and left out: undefined" in printed
  assert sorted(p.name for p in output.iterdir()) == [
      "classification.json", "classification.npz", "classification.samples.npz",
      "retrieval.json", "retrieval.npz", "retrieval.samples.npz", "scores.csv", "scores.jsonl",
  ]  # fmt: skip
  rows = [json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()]
  assert len(rows) == 4 and {row["step"] for row in rows} == {3}
  (score,) = (r for r in rows if (r["evaluation"], r["figure"]) == ("retrieval", "score"))
  assert (score["value"], score["low"], score["signature"]) == (13.0, low, signature)
  table = list(csv.DictReader((output / "scores.csv").open()))
  assert [float(row["value"]) for row in table] == [row["value"] for row in rows]
  # The evaluations see what belongs together.
  made, _ = Fake.made[0]
  assert made.vocabulary == context.vocabulary and made.studies == context.studies
  assert made.image_tokenizer.fingerprint == context.image_tokenizer.fingerprint

  evaluate.main(arguments)
  assert len(Fake.made) == 2
  assert "classification of step 3: finished before" in capsys.readouterr().out
  evaluate.main([*arguments, "--seed=1", "--evaluations=classification"])
  assert len(Fake.made) == 3 and read(output / "classification.json")["seed"] == 1


def test_another_step_another_config_or_another_run_is_evaluated_again(
    write_run, inputs, tmp_path, fakes
):
  folder, output = write_run(steps=(3, 4)), tmp_path / "out"
  arguments = [
      f"--checkpoint={folder}", f"--output={output}", "--evaluations=classification", *inputs
  ]  # fmt: skip
  evaluate.main(arguments)
  assert read(output / "classification.json")["values"]["score"] == 4  # The newest.
  evaluate.main([*arguments, "--step=3"])
  assert read(output / "classification.json")["values"]["score"] == 3
  other = [*arguments, "--step=3", "--config.classification.max_train=7"]
  evaluate.main(other)
  assert Fake.made[-1][1].max_train == 7
  job = read(folder / "job.json")
  (folder / "job.json").write_text(json.dumps(job | {"seed": 7}))
  evaluate.main(other)
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
  assert read(tmp_path / "out/stage1/classification.json")["values"]["score"] == 3
  assert read(tmp_path / "out/stage2/classification.json")["values"]["score"] == 5
  with pytest.raises(UserError, match="2 --checkpoint and 1 --output"):
    evaluate.main([*pairs[:-1], *inputs])


def test_a_real_evaluation_of_a_checkpoint(
    write_run, inputs, tmp_path, context, params, fakes, values_of
):
  fakes["classification"] = Classification
  output = tmp_path / "out"
  evaluate.main([
      f"--checkpoint={write_run(steps=(0,))}", f"--output={output}",
      "--evaluations=classification", "--config.classification.mask_ratios=(0.0,)", *inputs,
  ])  # fmt: skip
  expected = Classification(context, ClassificationConfig(mask_ratios=(0.0,))).run(params)
  found = read(output / "classification.json")
  assert found["values"] == values_of(expected)
  low, high = found["intervals"]["auroc/mask=0.00"]
  assert 0.4 < low < found["values"]["auroc/mask=0.00"] < high <= 1
  np.load(output / "classification.npz", allow_pickle=False)["study_ids"]


def test_a_run_is_followed_to_its_last_step(write_run, inputs, tmp_path, monkeypatch, capsys):
  folder, output = tmp_path / "run", tmp_path / "out"
  steps = iter([(3,), (5,)])

  def wait(seconds):
    """The run goes on: it keeps its newest checkpoint only."""
    shutil.rmtree(folder, ignore_errors=True)
    write_run(steps=next(steps), last=5)

  monkeypatch.setattr(evaluate.time, "sleep", wait)
  evaluate.main([
      f"--checkpoint={folder}", f"--output={output}", "--follow", "--evaluations=retrieval", *inputs
  ])  # fmt: skip
  assert read(output / "3/retrieval.json")["values"]["score"] == 13
  assert read(output / "5/retrieval.json")["values"]["score"] == 15
  assert len(Fake.made) == 1
  with pytest.raises(UserError, match="--follow takes one --checkpoint and no --step"):
    evaluate.main([
        f"--checkpoint={folder}", f"--output={output}", "--follow", "--step=3", *inputs
    ])  # fmt: skip


def test_a_run_that_stops_early_is_followed_to_its_end(write_run, tmp_path):
  folder, seen = write_run(steps=(3, 5), last=90), []
  found = folder / "checkpoints" / "5" / "validation"
  found.mkdir()
  (found / "metadata").write_text(json.dumps({"best": 3, "stopped": True, "lines": []}))
  evaluate.follow(lambda checkpoint, output, step: seen.append(step), folder, tmp_path / "out")
  assert seen == [3, 5]


def test_figures_choose_checkpoints_while_a_model_trains(
    inputs, tmp_path, context, params, fakes, monkeypatch
):
  paths = dict(argument[2:].split("=") for argument in inputs)
  fakes |= {"zero_shot": Fake}

  def score_of(metric, **changes):
    evaluation = EvaluationInputs(**(paths | changes))
    settings = ValidationConfig(metric=metric, evaluation=evaluation)
    model = dataclasses.replace(context.model, adapter=AdapterConfig(rank=2))
    data = DataConfig(tokens=str(context.tokens), context=64, batch_size=8)
    return train.make_score(TrainConfig(model, data, init="base", validation=settings))

  card = tokens.read_card(context.tokens)
  monkeypatch.setattr(train, "make_job", lambda config: {"tokens": card})
  assert score_of("loss") is None
  score = score_of("zero_shot/score")
  for step in range(2):  # What is scored is left as it is.
    found = score(params, step)
  bias = float(params["lm_head"]["bias"].mean())
  assert found.pop("zero_shot/score") == pytest.approx(bias)
  assert np.isnan(found.pop("zero_shot/undefined")) and found == {"zero_shot/chance/score": 0.5}
  ((made, settings),) = Fake.made
  assert made.split == "val" and made.model.adapter is None and settings.num_studies == 100
  with pytest.raises(UserError, match=r"'zeroshot/x' names no evaluation; use one of clas"):
    score_of("zeroshot/x")
  with pytest.raises(UserError, match=r"validation\.evaluation\.studies is empty, but zero_shot"):
    score_of("zero_shot/score", studies="")
  with pytest.raises(UserError, match=r"nothing\.py is not a config file"):
    score_of("zero_shot/score", protocol="nothing.py")


def test_a_checkpoint_that_goes_meanwhile_is_passed_over(write_run, tmp_path, capsys):
  folder = write_run(steps=(3, 5), last=5)
  seen = []

  def evaluator(checkpoint, output, step):
    seen.append(step)
    if step == 3:
      shutil.rmtree(folder / "checkpoints" / "3")
      raise UserError("gone")

  evaluate.follow(evaluator, folder, tmp_path / "out")
  assert seen == [3, 5] and "step 3 is gone" in capsys.readouterr().out


def test_inputs_that_do_not_belong_together(write_run, inputs, tmp_path, context, studies_dir):
  output = tmp_path / "out"

  def main(*changes, folder=None):
    folder = folder or write_run()
    evaluate.main([f"--checkpoint={folder}", f"--output={output}", *inputs, *changes])

  other = Vocabulary.sentencepiece(context.vocabulary.num_text, 64)
  with pytest.raises(UserError, match="another vocabulary"):
    main(folder=write_run("other", vocabulary=other))
  changed = dataclasses.replace(context.image_tokenizer.config, commitment=0.5)
  type(context.image_tokenizer)(changed, context.image_tokenizer.params).save(tmp_path / "changed")
  with pytest.raises(UserError, match="another image tokenizer"):
    main(f"--image_tokenizer={tmp_path / 'changed'}")
  with pytest.raises(UserError, match="not a run directory"):
    main(folder=tmp_path / "nothing")
  with pytest.raises(UserError, match="has no checkpoint"):
    main("--step=9")
  with pytest.raises(UserError, match="did you mean 'retrieval'"):
    main("--evaluations=classification,retrival")
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


def test_the_table_has_the_summarys_figures_with_intervals_and_baselines():
  table = run.format_table(
      {
          "num_test": 600.0, "auroc/mask=0.00": 0.8614, "auroc/mask=0.00/layer=1": 0.7,
          "random_init/auroc/mask=0.00": 0.5,
      },
      {"auroc/mask=0.00": (0.8, 0.9)},
      "classification",
  )  # fmt: skip
  assert table.splitlines() == [
      "  0% of the image hidden    0.861  [0.800, 0.900]    random initialisation 0.500",
  ]
