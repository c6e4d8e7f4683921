"""Validation while a model trains: what is computed, what is kept, when a run stops."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import assert_same_end, read_item, read_validations, validate

from chexmix_jax.data import tokens
from chexmix_jax.data.documents import IMAGE, Text, make_document
from chexmix_jax.data.masking import MaskingConfig, ModalityMaskConfig
from chexmix_jax.errors import UserError
from chexmix_jax.inference.model import load_model
from chexmix_jax.models.adapter import AdapterConfig
from chexmix_jax.models.transformer import Transformer
from chexmix_jax.parallel.mesh import MeshConfig
from chexmix_jax.training import loop
from chexmix_jax.training.base import describe_base
from chexmix_jax.training.checkpoint import last_step, ranked_steps, saved_steps
from chexmix_jax.training.loop import train
from chexmix_jax.training.validation import (
  History,
  ValidationConfig,
  is_lower_better,
  pick_figure,
)

WEIGHTS = MaskingConfig(ModalityMaskConfig(weight=0.2), ModalityMaskConfig(weight=1.0))


def by_hand(setup, params, tokens_dir, split):
  """loss, image_nll and text_nll of a split, document by document, in float64."""
  sums = np.zeros(6)
  table = tokens.load_tokens(tokens_dir, split)
  model = dataclasses.replace(setup.config.model, dropout=0.0)
  length = setup.config.data.context
  logits_of = jax.jit(lambda params, ids: Transformer(model, params)(ids))
  for codes, text in zip(table.codes, table.texts, strict=True):
    made = make_document([codes, Text(text, np.zeros(0, np.int32))], setup.vocabulary, length)
    ids = np.pad(made.tokens, (0, length - len(made.tokens)))
    logits = np.asarray(logits_of(params, ids[None]))[0, : len(made.tokens)].astype(np.float64)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), made.targets]
    is_image = np.asarray(setup.vocabulary.is_image(made.targets))
    weights = np.where(made.part == IMAGE, 0.2, 1.0)  # What ends an image weighs as it does.
    sums += [
        (weights * nll).sum(), weights.sum(), nll[is_image].sum(), is_image.sum(),
        nll[~is_image].sum(), (~is_image).sum(),
    ]  # fmt: skip
  return dict(zip(("loss", "image_nll", "text_nll"), sums[::2] / sums[1::2], strict=True))


@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), MeshConfig(2, 2, 2)])
def test_losses_are_those_of_each_document_by_itself(config, tokens_dir, mesh):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  data = dataclasses.replace(config.data, masking=WEIGHTS)
  config = dataclasses.replace(
      config, data=data, mesh=mesh, accumulation=2, validation=ValidationConfig()
  )
  line, setup, params = validate(config)
  expected = {
      prefix + name: value
      for split, prefix in (("val", ""), ("train", "train_"))
      for name, value in by_hand(setup, params, tokens_dir, split).items()
  }
  assert line.pop("step") == 0
  assert line == pytest.approx(expected, abs=1e-5)


def learning(config, **validation):
  """A run long enough to learn its documents by heart, and its first three validations."""
  optimizer = dataclasses.replace(config.optimizer, learning_rate=2e-2)
  data = dataclasses.replace(config.data, masking=MaskingConfig())
  settings = ValidationConfig(**{"studies": 8, "patience": 2, **validation})
  return dataclasses.replace(
      config, steps=80, checkpoint_every=8, data=data, optimizer=optimizer, validation=settings
  )


@pytest.fixture(scope="module")
def overfitted(config, tmp_path_factory):
  """A run that has stopped early; what it said last is in `said`."""
  folder = tmp_path_factory.mktemp("overfitted") / "run"
  config = learning(config)
  train(config, folder)
  return config, folder


def test_a_run_stops_early_and_keeps_its_best_checkpoint(overfitted, capsys):
  config, folder = overfitted
  lines = read_validations(folder)
  end = lines[-1]["step"]
  assert [line["step"] for line in lines] == list(range(0, end + 1, 8)) and end < config.steps
  best = min(lines[1:], key=lambda line: line["loss"])["step"]
  assert best == end - 16  # Two validations in vain.
  assert saved_steps(folder) == [best, end - 8, end]
  assert ranked_steps(folder) == [end - 8, end, best] and last_step(folder) == end
  # It is used unless another step is asked for, also as a base.
  assert load_model(folder).step == describe_base(folder)["step"] == best
  assert load_model(folder, end).step == end
  # The same command does nothing but say so.
  before = (folder / "metrics.jsonl").read_bytes()
  capsys.readouterr()
  train(config, folder)
  said = capsys.readouterr()
  assert (
      f"stopped early after step {end}: loss of the val split has not improved for 2 validations;"
      f" the best checkpoint is of step {best}\n"
  ) in said.out
  assert f"WARNING: the run overfits from step {best} on" in said.err
  assert (folder / "metrics.jsonl").read_bytes() == before and read_validations(folder) == lines


def test_an_interrupted_run_has_the_same_best_and_stops_at_the_same_step(
    overfitted, tmp_path, monkeypatch
):
  config, folder = overfitted
  end = last_step(folder)
  add, save = loop.MetricsWindow.add, loop.Checkpoints.save

  def interrupt(window, step, metrics):
    if step == end - 4:  # After a validation that was no better.
      raise KeyboardInterrupt
    add(window, step, metrics)

  def cut_short(checkpoints, *args):
    if int(args[0].step) == end:  # Validated, but not saved.
      raise KeyboardInterrupt
    save(checkpoints, *args)

  for owner, name, function in (
      (loop.MetricsWindow, "add", interrupt), (loop.Checkpoints, "save", cut_short)
  ):  # fmt: skip
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, function)
      with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
  train(config, tmp_path / "run")
  assert_same_end(tmp_path / "run", folder)
  assert read_validations(tmp_path / "run") == read_validations(folder)
  assert saved_steps(tmp_path / "run") == saved_steps(folder)


def test_the_best_that_cannot_be_read_is_passed_over(overfitted, tmp_path, capfd):
  _, folder = overfitted
  best, copy = load_model(folder).step, tmp_path / "run"
  copy.mkdir()
  (copy / "job.json").write_bytes((folder / "job.json").read_bytes())
  (copy / "checkpoints").mkdir()
  for step in saved_steps(folder):
    if step != best:
      (copy / f"checkpoints/{step}").symlink_to(folder.absolute() / f"checkpoints/{step}")
  (copy / f"checkpoints/{best}").mkdir()
  assert load_model(copy).step == last_step(folder)
  assert f"checkpoints/{best} cannot be read" in capfd.readouterr().err
  (copy / "checkpoints" / "999").mkdir()  # Nor does one without anything hide which it is.
  assert ranked_steps(copy)[-1] == best


def test_a_figure_of_an_evaluation_chooses_the_best_of_an_adapted_run(
    config, whole_run, tmp_path, capsys
):
  found, seen = {0: 0.1, 1: 0.3, 2: 0.5, 3: 0.5, 4: float("nan")}, {}

  def score(params, step):
    seen[step] = jax.device_get(params["layers"]["attn"]["q"]["kernel"])
    return {"generation/f1": found[step], "generation/other": 1.0}

  model = dataclasses.replace(config.model, adapter=AdapterConfig(rank=2, alpha=8.0))
  settings = dataclasses.replace(
      config, model=model, init=str(whole_run), steps=4, checkpoint_every=1,
      validation=ValidationConfig(studies=4, metric="generation/f1"),
  )  # fmt: skip
  folder = tmp_path / "run"
  train(settings, folder, score=score)
  lines = read_validations(folder)
  assert [line.get("generation/f1") for line in lines] == [0.1, 0.3, 0.5, 0.5, None]
  assert saved_steps(folder) == [2, 3, 4]
  # It is given the model as it is loaded, whole.
  loaded = load_model(folder)
  assert loaded.step == 2
  for layer, kernel in zip(loaded.params["layers"], seen[2], strict=True):
    np.testing.assert_allclose(layer["attn"]["q"]["kernel"], kernel, atol=1e-6)
  base = read_item(whole_run, saved_steps(whole_run)[-1], "params")
  np.testing.assert_array_equal(seen[0], base["layers"]["attn"]["q"]["kernel"])
  said = capsys.readouterr()
  assert "generation/f1\n" in said.out and "overfits" not in said.err
  with pytest.raises(UserError, match=r"'generation/f2' is nothing .*mean 'generation/f1'\?"):
    pick_figure({"generation/f1": 1.0}, "generation/f2")
  with pytest.raises(UserError, match=r"only python -m chexmix_jax\.train computes"):
    train(settings, tmp_path / "none")


def history(rows, metric="loss", patience=0, steps=100):
  """Of (loss, train_loss) or a figure of each validation, from step 0."""
  made = History(ValidationConfig(metric=metric, patience=patience), steps)
  for step, row in enumerate(rows):
    names = ("loss", "train_loss") if isinstance(row, tuple) else (metric,)
    values = row if isinstance(row, tuple) else (row,)
    made.add({"step": 10 * step, **dict(zip(names, values, strict=True))})
  return made


def test_the_best_is_the_first_of_equals_and_never_of_before_the_first_step():
  assert history([(1, 1)]).best is None
  assert history([(1, 1), (3, 1), (2, 1), (2, 0)]).best["step"] == 20
  up = "generation/finding_f1_micro"
  assert history([0.9, 0.1, 0.5, 0.4], up).best["step"] == 20
  undefined = history([(3, 1), (2, 1)])
  undefined.add({"step": 20})
  assert undefined.best["step"] == 10


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([9, 5, 4, 4, 4], 2, True),
        ([9, 5, 4, 4, 4], 3, False),
        ([9, 5, 4, 4, 3], 2, False),
        ([9, 5, 6, 7, 8], 0, False),
    ],
)
def test_patience_counts_validations_without_a_better_metric(losses, patience, stops):
  made = history([(loss, 1) for loss in losses], patience=patience)
  assert made.has_stopped == stops
  again = History(ValidationConfig(patience=patience), 100, made.get_state())
  assert again.has_stopped == stops and again.get_state() == made.get_state()
  # At its last step a run ends anyway.
  assert not history([(loss, 1) for loss in losses], patience=patience, steps=40).has_stopped


@pytest.mark.parametrize(
    ("rows", "overfits"),
    [
        ([(9, 9), (4, 4), (5, 3)], True),
        ([(9, 9), (4, 4), (4.03, 3)], False),  # Less than 1 % above the least.
        ([(9, 9), (4, 4), (5, 5)], False),  # Both have risen: that is another trouble.
        ([(9, 9), (4, 4), (3, 2)], False),
        ([(9, 9)], False),
    ],
)
def test_overfitting_is_told_from_the_two_losses(rows, overfits):
  sentence = history(rows).overfit_sentence()
  assert (sentence is not None) == overfits
  if overfits:
    assert sentence.startswith(
        "the run overfits from step 10 on: until step 20 the loss of the val split rose from 4.0000"
        " to 5.0000, while that of the train split fell from 4.0000 to 3.0000; the checkpoint of"
        " step 10 is kept as the best; "
    )


def test_the_summary_has_both_losses_and_their_gap():
  header, *rows = history([(9, 9), (4, 3.5), (5, 3)]).summary().splitlines()
  assert header.split() == ["step", "train", "loss", "val", "loss", "gap"]
  assert [row.split() for row in rows] == [
      ["start", "0", "9.0000", "9.0000", "0.0000"],
      ["best", "10", "3.5000", "4.0000", "0.5000"],
      ["last", "20", "3.0000", "5.0000", "2.0000"],
  ]


def test_which_metrics_are_better_when_lower():
  lower = (
      "loss", "text_nll", "classification/brier/mask=0.00", "retrieval/image_to_report/median_rank",
      "inpainting/masked_l1/top/mask=0.50", "inpainting/lpips/top/mask=0.50",
  )  # fmt: skip
  higher = (
      "classification/auroc/mask=0.00", "generation/finding_f1_micro", "generation/bleu_4",
      "inpainting/masked_psnr/top/mask=0.50", "zero_shot/auroc", "generation/rouge_l",
      "retrieval/image_to_report/recall@1",
  )  # fmt: skip
  assert all(map(is_lower_better, lower)) and not any(map(is_lower_better, higher))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"studies": 0}, "studies=0 of a validation must be 1 or more"),
        ({"patience": -1}, "patience=-1 of a validation"),
        ({"metric": "auroc"}, "metric='auroc' of a validation must be one of loss,"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
  with pytest.raises(UserError, match=message):
    ValidationConfig(**change)
