"""A checkpoint with what is needed to use it, and what a model answers."""

import contextlib
import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import chexmix_jax
from chexmix_jax import config as config_lib
from chexmix_jax.data import images
from chexmix_jax.errors import UserError
from chexmix_jax.inference.embeddings import embed_images
from chexmix_jax.inference.inpaint import METHODS, fill_codes
from chexmix_jax.inference.model import LoadedModel, Model, load, load_model
from chexmix_jax.inference.reports import (
  generate_ids,
  make_prompt,
  read_report,
  report_options,
)
from chexmix_jax.inference.surprise import image_surprise
from chexmix_jax.models.transformer import Transformer, TransformerConfig
from chexmix_jax.models.unstack import unstack_layers
from chexmix_jax.parallel.mesh import MeshConfig, make_mesh
from chexmix_jax.tokenizers import text as text_lib
from chexmix_jax.tokenizers.image import ImageTokenizer
from chexmix_jax.tokenizers.vocabulary import Vocabulary
from chexmix_jax.training.checkpoint import Checkpoints, write_job
from chexmix_jax.training.optimizer import OptimizerConfig, make_optimizer
from chexmix_jax.training.step import abstract_state, init_state

VOCABULARY = Vocabulary.sentencepiece(num_text=30, num_codes=20)
MODEL = TransformerConfig(
    vocab_size=VOCABULARY.size, num_layers=1, width=16, num_heads=2, mlp_dim=32, rotary_dim=4
)
JOB = {
    "train": {"model": config_lib.to_dict(MODEL)},
    "tokens": {"vocabulary": VOCABULARY.to_dict()},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with checkpoints of steps 3 and 5, and the parameters of both."""
  run_dir = tmp_path_factory.mktemp("inference") / "run"
  write_job(run_dir, JOB)
  optimizer = make_optimizer(OptimizerConfig(), 10)
  shardings = jax.tree.map(
      lambda leaf: leaf.sharding, abstract_state(MODEL, optimizer, make_mesh(MeshConfig()))
  )
  init = jax.jit(functools.partial(init_state, MODEL, optimizer), out_shardings=shardings)
  params = {}
  with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
    for step in (3, 5):
      state = init(jax.random.key(step))
      state = dataclasses.replace(state, step=jax.device_put(np.int32(step), state.step.sharding))
      checkpoints.save(state, iter(grain.MapDataset.range(3).to_iter_dataset()))
      params[step] = jax.device_get(state.params)
  return run_dir, params


@pytest.mark.parametrize("asked, step", [(None, 5), (5, 5), (3, 3)])
def test_the_newest_or_the_given_checkpoint_is_loaded(run, asked, step):
  run_dir, params = run
  model = load_model(run_dir, asked)
  assert (model.step, model.config, model.vocabulary) == (step, MODEL, VOCABULARY)
  assert model.job == JOB
  expected = unstack_layers(jax.tree.map(jnp.asarray, params[step]))
  jax.tree.map(np.testing.assert_array_equal, model.params, expected)
  assert {leaf.sharding.mesh for leaf in jax.tree.leaves(model.params)} == {make_mesh()}


def test_it_can_be_used_as_it_is(run):
  model = load_model(run[0])
  logits = Transformer(model.config, model.params)(np.zeros((2, 3), np.int32))
  assert logits.shape == (2, 3, VOCABULARY.size) and np.all(np.isfinite(logits))


def test_a_checkpoint_or_folder_that_is_not_there_is_named(run, tmp_path):
  with pytest.raises(UserError, match="no checkpoint of step 4; it has 3, 5"):
    load_model(run[0], 4)
  with pytest.raises(UserError, match="not a run directory"):
    load_model(tmp_path)


def test_a_job_with_a_strange_setting_is_refused(tmp_path):
  write_job(tmp_path, {**JOB, "train": {"model": {**JOB["train"]["model"], "depth": 3}}})
  with pytest.raises(UserError, match=r"job\.json: model\.depth"):
    load_model(tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Six files: PNG of 8 and 16 bits, and JPEG."""
  folder = tmp_path_factory.mktemp("pictures")
  rng = np.random.default_rng(0)
  paths = []
  for number in range(6):
    grey = rng.integers(0, 256, (4, 4)).repeat(6, 0).repeat(6, 1) + rng.integers(0, 9, (24, 24))
    raw = (grey * 200).astype(np.uint16) if number % 3 == 0 else np.minimum(grey, 255)
    paths.append(folder / f"{number}.{'jpg' if number % 3 == 1 else 'png'}")
    Image.fromarray(raw if raw.dtype == np.uint16 else raw.astype(np.uint8)).save(paths[-1])
  return paths


@pytest.fixture(scope="module")
def codes_of(model, pictures):
  """Their codes, int32 (6, 4, 4), from the tokenizer itself."""
  rgb = [images.read_image(path, 16) for path in pictures]
  grey = np.stack([images.to_float(images.grey(picture)) for picture in rgb])[..., None]
  codes = model.image_tokenizer.encode(grey)
  assert len(np.unique(codes)) > 5  # Otherwise the comparisons say little.
  return codes


def test_importing_the_package_stays_cheap():
  code = "import chexmix_jax, sys; assert not {'jax', 'numpy'} & {*sys.modules}"
  subprocess.run([sys.executable, "-c", code], check=True)
  assert chexmix_jax.load is load
  with pytest.raises(AttributeError, match="laod"):
    chexmix_jax.laod  # noqa: B018


def test_embeddings_are_those_of_the_codes(model, pictures, codes_of):
  ids = model.vocabulary.codes_to_ids(codes_of.reshape(6, 16))
  expected = embed_images(model.config, model.vocabulary, model.params, ids, 6)
  found = model.embed(pictures)
  assert found.shape == (6, 3, 32) and found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_array_equal(model.embed(pictures, layers=[2, 0]), found[:, [2, 0]])
  # Other forms of the same pictures.
  pixels = np.stack([model.pixels(path) for path in pictures])
  np.testing.assert_array_equal(model.embed(pixels), found)
  opened = [Image.open(path) for path in pictures]
  np.testing.assert_array_equal(model.embed(opened), found)
  np.testing.assert_allclose(model.embed([str(pictures[5])])[0], found[5], atol=1e-5)


def test_reports_go_on_from_the_picture(model, pictures, codes_of):
  ids = model.vocabulary.codes_to_ids(codes_of.reshape(6, 16))
  prompts = [make_prompt(model.vocabulary, {"image": row}) for row in ids]
  new = generate_ids(
      model.config, model.vocabulary, model.params, prompts, report_options(model.vocabulary), 6
  )
  reports = model.generate_reports(pictures)
  assert reports == [read_report(model.vocabulary, model.text_tokenizer, row) for row in new]
  assert len(set(reports)) > 1


def test_an_answer_goes_on_from_picture_and_question(model, pictures, codes_of):
  ids = model.vocabulary.codes_to_ids(codes_of.reshape(6, 16))
  questions = ["is the heart large?"] * 5 + [""]
  prompts = []
  for row, question in zip(ids, questions, strict=True):
    parts = {"image": row, "question": model.text_tokenizer.encode(question)}
    prompts.append(make_prompt(model.vocabulary, parts if question else {"image": row}))
  new = generate_ids(
      model.config, model.vocabulary, model.params, prompts, report_options(model.vocabulary), 6
  )
  form = "(image) (question) answer"
  answers = model.generate_reports(pictures, documents=form, prompts={"question": questions})
  assert answers == [read_report(model.vocabulary, model.text_tokenizer, row) for row in new]
  # Without its question the last one is like a report.
  reports = model.generate_reports(pictures)
  assert answers[:5] != reports[:5] and answers[5] == reports[5]
  with pytest.raises(UserError, match="mend its 'question'"):
    model.generate_reports(pictures, documents=form)


def test_generated_ids_are_those_of_a_loop(model, forward):
  prompts = [np.array([9, 8, 7]), [5], np.arange(9)]
  end = model.vocabulary.boi
  for prompt, found in zip(prompts, model.generate(prompts, 5, min_new=5), strict=True):
    expected: list[int] = []
    for _ in range(5):
      logits = forward([*prompt, *expected])[-1]
      logits[end] = -np.inf
      expected.append(int(logits.argmax()))
    assert found.tolist() == expected and found.dtype == np.int32


def test_a_hidden_share_changes_reports_and_depends_on_the_picture_alone(model, pictures):
  plain = model.generate_reports(pictures)
  hidden = model.generate_reports(pictures, mask_ratio=0.75)
  assert hidden != plain and model.generate_reports(pictures, mask_ratio=0.0) == plain
  assert model.generate_reports(pictures[::-1], mask_ratio=0.75) == hidden[::-1]
  assert model.generate_reports(pictures, mask_ratio=0.75, seed=1) != hidden
  assert len(set(model.generate_reports(pictures, mask_ratio=1.0))) == 1


@pytest.mark.parametrize("method", METHODS)
def test_inpainting_draws_the_filled_codes(model, pictures, codes_of, method):
  masks = np.random.default_rng(1).random((6, 4, 4)) < 0.5
  flat = codes_of.reshape(6, 16), masks.reshape(6, 16)
  filled = fill_codes(model.config, model.vocabulary, model.params, *flat, method, 6)["codes"]
  expected = images.to_uint8(model.image_tokenizer.decode(filled.reshape(6, 4, 4)))
  found = model.inpaint(pictures, masks, method)
  assert found.shape == (6, 16, 16, 1) and found.dtype == np.uint8
  np.testing.assert_array_equal(found, expected)
  one = model.inpaint(pictures, masks[0], method)
  np.testing.assert_array_equal(one[0], found[0])


def test_a_reconstruction_is_drawn_from_the_codes(model, pictures, codes_of):
  expected = images.to_uint8(model.image_tokenizer.decode(codes_of))
  np.testing.assert_array_equal(model.reconstruct(pictures), expected)


def test_surprise_is_that_of_the_codes(model, pictures, codes_of):
  causal, masked = model.token_surprise(pictures, radius=2)
  expected = image_surprise(model.config, model.vocabulary, model.params, codes_of, 2, 6)
  np.testing.assert_allclose(causal, expected.causal, atol=1e-4)
  np.testing.assert_allclose(masked, expected.masked, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: m.embed(p[0]), "must be a list of pictures"),
        (lambda m, p: m.embed([]), "nothing in the list"),
        (lambda m, p: m.embed([*p[:1], "none.png"]), r"none\.png does not exist"),
        (lambda m, p: m.embed(p, layers=[1, 3]), r"layers holds 3; use some of 0 … 2"),
        (lambda m, p: m.generate_reports(p, mask_ratio=1.5), r"mask_ratio=1\.5"),
        (lambda m, p: m.inpaint(p, np.zeros((4, 4), bool), "best"), "method='best'"),
        (lambda m, p: m.inpaint(p, np.zeros((16, 16), bool)), r"masks of shape \(16, 16\)"),
        (lambda m, p: m.inpaint(p, np.zeros((4, 4))), "type float64 must be bool"),
        (lambda m, p: m.logits(np.array([[1, 9999]])), "ids from 1 to 9999"),
        (lambda m, p: m.logits(np.array([1, 2])), r"ids of shape \(2,\)"),
        (lambda m, p: m.generate([[1.5]], 4), "type float64 must be integers"),
        (lambda m, p: m.generate([[1], []], 4), "ids of shape"),
    ],
)
def test_what_makes_no_sense_is_named(model, pictures, call, message):
  with pytest.raises(UserError, match=message):
    call(model, pictures)


@pytest.fixture
def copy(model_dir, tmp_path):
  return shutil.copytree(model_dir, tmp_path / "copy")


def test_a_run_of_our_own_needs_its_tokenizers_named(model_dir, copy, pictures, model):
  shutil.move(copy / "image_tokenizer", copy / "i")
  shutil.move(copy / "text_tokenizer.model", copy / "t")
  bare = chexmix_jax.load(copy)
  assert bare.step == 7 and bare.logits(np.ones((1, 2), int)).shape[:2] == (1, 2)
  with pytest.raises(UserError, match="no image tokenizer"):
    bare.embed(pictures)
  with pytest.raises(UserError, match="no image tokenizer"):
    _ = bare.image_tokenizer
  seeing = chexmix_jax.load(copy, image_tokenizer=copy / "i")
  np.testing.assert_allclose(seeing.embed(pictures), model.embed(pictures), atol=1e-5)
  with pytest.raises(UserError, match="no text tokenizer"):
    seeing.generate_reports(pictures)
  whole = chexmix_jax.load(copy, 7, str(copy / "i"), str(copy / "t"))
  assert whole.text_tokenizer.fingerprint == model.text_tokenizer.fingerprint


def test_a_tokenizer_that_is_another_is_refused(copy):
  tokenizer = ImageTokenizer.load(copy / "image_tokenizer")
  changed = dataclasses.replace(tokenizer.config, commitment=0.5)
  ImageTokenizer(changed, tokenizer.params).save(copy / "other")
  text_lib.train_sentencepiece(["another text"], 280, copy / "other.model")
  with pytest.raises(UserError, match=r"other is another image tokenizer than"):
    chexmix_jax.load(copy, image_tokenizer=copy / "other")
  # One that was adapted from the model's own has its codes.
  adapted = ImageTokenizer(changed, tokenizer.params, codes_of=tokenizer.fingerprint)
  adapted.save(copy / "adapted")
  model = chexmix_jax.load(copy, image_tokenizer=copy / "adapted")
  assert model.image_tokenizer.fingerprint == adapted.fingerprint
  with pytest.raises(UserError, match=r"other\.model is another text tokenizer than"):
    chexmix_jax.load(copy, text_tokenizer=copy / "other.model")
  # Where the card says nothing, there is nothing to compare with.
  job = json.loads((copy / "job.json").read_text())
  job["tokens"] = {"vocabulary": job["tokens"]["vocabulary"], "text_tokenizer": None}
  (copy / "job.json").write_text(json.dumps(job))
  chexmix_jax.load(copy, image_tokenizer=copy / "other", text_tokenizer=copy / "other.model")


def test_answers_equal_the_pytorch_implementation(shared, golden_params):
  config, vocabulary, params = golden_params
  params = unstack_layers(jax.tree.map(jnp.copy, params))
  model = Model(LoadedModel(config, vocabulary, params, {}, 0), batch_size=2)
  golden = np.load(shared / "parity/phi_small.npz")
  logits, hidden = model.logits(golden["ids"]), model.hidden_states(golden["ids"])
  np.testing.assert_allclose(logits, golden["logits"], atol=1e-4, rtol=0)
  np.testing.assert_allclose(hidden, golden["hidden"], atol=1e-4, rtol=0)
  # 1,026 and 2,048 tokens.
  np.testing.assert_allclose(
      model.logits(golden["long_seq"])[0, -1], golden["long_logits_last"], atol=1e-4, rtol=0
  )
  last4 = model.hidden_states(golden["ext_seq"])[:, 0, -4:]
  np.testing.assert_allclose(last4, golden["ext_hidden_last4"], atol=1e-4, rtol=0)
  # Rows padded on the right.
  is_token = golden["pad_mask"].astype(bool)
  padded = np.where(is_token, golden["ids"], vocabulary.pad)
  last = model.hidden_states(padded)[-1]
  np.testing.assert_allclose(
      last[is_token], golden["pad_last_hidden"][is_token], atol=1e-4, rtol=0
  )
