import collections
import json

import numpy as np
import pytest

from chexmix_jax.data import images, studies, tokens
from chexmix_jax.data.documents import Text, make_document
from chexmix_jax.data.load_study import LoadOptions
from chexmix_jax.data.masking import MaskingConfig, ModalityMaskConfig
from chexmix_jax.data.pipeline import (
    DataConfig,
    EpochStart,
    image_iterator,
    make_plan,
    parse_folders,
    train_iterator,
)
from chexmix_jax.data.sources import source
from chexmix_jax.data.write_studies import WriteOptions, write_studies
from chexmix_jax.data.write_tokens import write_tokens
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

CONTEXT = 96
HALF = ModalityMaskConfig(prob=0.9, low=0.1, high=0.9, loss_on="visible")


def _config(folder, masked=False, **changes):
  masking = MaskingConfig(HALF, HALF) if masked else MaskingConfig()
  values = {"context": CONTEXT, "batch_size": 4, "packing_rows": 8} | changes
  return DataConfig(tokens=str(folder), masking=masking, **values)


def _take(number, *args, state=None):
  iterator = train_iterator(*args)
  try:
    if state is not None:
      iterator.set_state(state)
    return [next(iterator) for _ in range(number)]
  finally:
    iterator.close()


def _documents(batches):
  """(inputs, targets, weights) of every packed document, as tuples, in the order of the rows."""
  for batch in batches:
    for row in range(len(batch["inputs"])):
      for segment in range(1, batch["segment_ids"][row].max() + 1):
        where = batch["segment_ids"][row] == segment
        np.testing.assert_array_equal(batch["positions"][row][where], np.arange(where.sum()))
        yield tuple(tuple(batch[k][row][where].tolist()) for k in ("inputs", "targets", "weights"))


def _assert_equal(batches, expected):
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected, strict=True):
    for name, value in other.items():
      np.testing.assert_array_equal(batch[name], value)


def _joined(parts):
  """Batches of several processes put together."""
  return [
      {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
      for batches in zip(*parts, strict=True)
  ]


@pytest.fixture(scope="module")
def originals(tokens_dir):
  """The training documents by their targets, which no mask changes."""
  table = tokens.load_tokens(tokens_dir, "train")
  vocabulary = Vocabulary(**tokens.read_card(tokens_dir)["vocabulary"])
  none = np.zeros(0, np.int32)
  made = [
      make_document([codes, Text(text, none)], vocabulary, CONTEXT)
      for codes, text in zip(table.codes, table.texts, strict=True)
  ]
  return {tuple(d.targets.tolist()): tuple(d.tokens.tolist()) for d in made}


def test_packed_documents_are_the_originals(tokens_dir, originals):
  for inputs, targets, weights in _documents(_take(12, _config(tokens_dir))):
    assert originals[targets] == inputs
    assert set(weights) == {1.0}


def test_shapes_types_and_padding(tokens_dir):
  vocabulary = Vocabulary(**tokens.read_card(tokens_dir)["vocabulary"])
  for batch in _take(6, _config(tokens_dir, masked=True)):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "inputs": ((4, CONTEXT), np.int32),
        "targets": ((4, CONTEXT), np.int32),
        "positions": ((4, CONTEXT), np.int32),
        "segment_ids": ((4, CONTEXT), np.int32),
        "weights": ((4, CONTEXT), np.float32),
    }
    padding = batch["segment_ids"] == 0
    assert padding.any()
    assert (batch["weights"][padding] == 0).all()
    assert (batch["inputs"][padding] == vocabulary.pad).all()
    assert (batch["targets"][padding] == vocabulary.pad).all()
    assert (batch["inputs"][~padding] != vocabulary.pad).all()


def test_every_epoch_has_every_document_in_another_order(tokens_dir, originals):
  # One row at a time keeps the order of the documents.
  config = _config(tokens_dir, batch_size=1, packing_rows=1)
  order = [targets for _, targets, _ in _documents(_take(60, config))]
  epochs = [order[i * 30 : (i + 1) * 30] for i in range(2)]
  assert all(set(epoch) == set(originals) for epoch in epochs)
  assert epochs[0] != epochs[1]


def test_the_start_of_an_epoch_has_its_first_documents_once(tokens_dir, originals):
  config = _config(tokens_dir, masked=True, packing_rows=2)
  start = EpochStart(config, "train", 13, 4)
  batches = list(start)
  assert start.num_documents == 13 and len(batches) == len(start) > 1
  found = [document for document in _documents(batches) if any(document[2])]
  # They are those that training sees first, with the same masks.
  one_by_one = dict(batch_size=1, packing_rows=1)
  expected = list(_documents(_take(13, _config(tokens_dir, masked=True, **one_by_one))))[:13]
  assert sorted(found) == sorted(d for d in expected if any(d[2]))
  _assert_equal(list(start), batches)
  parts = [list(EpochStart(config, "train", 13, 4, index, 2)) for index in range(2)]
  _assert_equal(_joined(parts), batches)
  # Another split has others; rows that only fill the last batch weigh nothing.
  val = EpochStart(config, "val", 1000, 32)
  (batch,) = val
  assert val.num_documents == 10
  assert all(targets not in originals for _, targets, _ in _documents([batch]))
  assert not batch["weights"][len(val._rows) :].any()
  assert batch["segment_ids"][len(val._rows) :].any(axis=1).all()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_put_together_are_the_batches_of_one(tokens_dir, count):
  config = _config(tokens_dir, masked=True)
  parts = [_take(15, config, index, count) for index in range(count)]
  assert parts[0][0]["inputs"].shape == (4 // count, CONTEXT)
  _assert_equal(_joined(parts), _take(15, config))


def test_masks_depend_on_seed_epoch_and_document_alone(tokens_dir, originals):
  """Another packing and other batches: the same masks in the same epochs."""

  def masks(config):
    found = collections.defaultdict(list)
    for inputs, targets, weights in _documents(_take(60, config)):
      found[targets].append((inputs, weights))
    return found

  one = masks(_config(tokens_dir, masked=True, batch_size=1, packing_rows=1))
  packed = masks(_config(tokens_dir, masked=True, batch_size=4, packing_rows=16))
  other = masks(_config(tokens_dir, True, batch_size=1, packing_rows=1, shuffle_seed=1))
  for document in originals:
    # Of each run the first epochs; packing may emit two of one document in the other order.
    assert set(one[document][:2]) <= set(packed[document])
    assert one[document][0] != one[document][1]
  assert any(one[document][0] != other[document][0] for document in originals)


@pytest.mark.parametrize("taken", [0, 1, 5, 17])
def test_resumes_with_identical_batches_on_any_number_of_processes(tokens_dir, taken):
  config = _config(tokens_dir, masked=True)
  whole = _take(25, config)
  first = train_iterator(config, 1, 2)
  for _ in range(taken):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  first.close()
  for count in (1, 2, 4):
    parts = [_take(25 - taken, config, index, count, state=state) for index in range(count)]
    _assert_equal(_joined(parts), whole[taken:])


def test_a_batch_must_divide_among_the_processes(tokens_dir):
  with pytest.raises(UserError, match="multiple of 3"):
    train_iterator(_config(tokens_dir), 0, 3)


@pytest.mark.parametrize(
    ("documents", "least"), [("image report", 20), ("prior frontal lateral report", 40)]
)
def test_a_context_too_short_for_the_images_is_refused(tokens_dir, documents, least):
  with pytest.raises(UserError, match=f"use {least} or more"):
    train_iterator(_config(tokens_dir, context=least - 1, documents=documents))


def test_long_reports_are_cut_to_the_context_and_counted(tokens_dir, originals):
  config = _config(tokens_dir, context=24)
  plan = make_plan(config)
  assert plan.num_cut == sum(len(document) > 24 for document in originals) > 0
  for _, targets, _ in _documents(_take(5, config)):
    assert len(targets) <= 24


@pytest.fixture(scope="module")
def rich_dir(fake_source, image_tokenizer, text_tokenizer, tmp_path_factory):
  """Every third study has a lateral view, a patient's second study, no picture, or no report."""
  folder = tmp_path_factory.mktemp("rich")
  changes = {}
  for i in range(0, 60, 5):
    lateral = source.Picture("lateral", f"l{i}.png", _lateral)
    frontal = fake_source(i + 1).studies[i].pictures[0]
    changes[i] = {"pictures": (frontal, lateral), "patient_id": f"p{i}", "order": 1}
    changes[i + 1] = {"patient_id": f"p{i}", "order": 2}
    changes[i + 3] = {"pictures": ()} if i % 2 else {"report": None}
  write_studies(
      fake_source(60, changes), folder / "studies", LoadOptions(16), WriteOptions()
  )
  vocabulary = Vocabulary.sentencepiece(text_tokenizer.vocab_size, image_tokenizer.num_codes)
  write_tokens(folder / "studies", image_tokenizer, text_tokenizer, vocabulary, folder / "tokens")
  return folder / "tokens"


def _lateral(size):
  return np.tile(np.arange(size, dtype=np.uint8) * 15, (size, 1))


def test_forms_of_documents(rich_dir, image_tokenizer):
  vocabulary = Vocabulary(**tokens.read_card(rich_dir)["vocabulary"])
  rows = list(tokens.open_tokens(rich_dir, "train"))
  pixels = images.to_float(_lateral(16))[None, ..., None]
  lateral = vocabulary.codes_to_ids(image_tokenizer.encode(pixels).reshape(-1)).tolist()
  config = _config(
      rich_dir, context=160, batch_size=1, packing_rows=1,
      documents="frontal lateral report, report image, prior image report, image, report",
  )  # fmt: skip
  seen = collections.Counter()
  texts = {tuple(row["report_ids"].tolist()) for row in rows}
  boi, eot = vocabulary.boi, vocabulary.eot
  for inputs, _, _ in _documents(_take(400, config)):
    starts = [i for i, token in enumerate(inputs) if token in (boi, eot)]
    parts = [inputs[a:b] for a, b in zip(starts, [*starts[1:], len(inputs)], strict=True)]
    kinds = tuple("image" if part[0] == boi else "text" for part in parts)
    seen[kinds] += 1
    if kinds == ("image", "image", "text"):
      assert list(parts[1][1:-1]) == lateral != list(parts[0][1:-1])
    if kinds == ("text", "image", "text"):
      assert parts[0][1:] in texts and parts[2][1:] in texts and parts[0] != parts[2]
  assert set(seen) == {
      ("image", "image", "text"), ("text", "image"), ("text", "image", "text"), ("image",),
      ("text",),
  }  # fmt: skip


def test_prompts_change_weights_alone(rich_dir):
  plain, batches = (
      _take(10, _config(rich_dir, documents=documents))
      for documents in ("prior image report", "(prior) (image) report")
  )
  for expected, batch in zip(plain, batches, strict=True):
    _assert_equal([batch | {"weights": expected["weights"]}], [expected])
  vocabulary = Vocabulary(**tokens.read_card(rich_dir)["vocabulary"])
  for inputs, _, weights in _documents(batches):
    start = inputs.index(vocabulary.eot, inputs.index(vocabulary.eoi))
    assert weights == (0.0,) * start + (1.0,) * (len(inputs) - start)


def test_sets_are_mixed_by_weight(tokens_dir, rich_dir):
  config = _config(f"{tokens_dir}:2, {rich_dir}:0.5", documents="report")
  one = len(tokens.open_tokens(tokens_dir, "train", ("report",)))
  other = len(tokens.open_tokens(rich_dir, "train", ("report",)))
  plan = make_plan(config)
  assert [len(s.lengths) for s in plan.sets] == [30, 36] and [s.weight for s in plan.sets] == [
      2.0, 0.5
  ]  # fmt: skip
  order = [d for d, _, _ in _documents(_take(80, _config(
      f"{tokens_dir}:2, {rich_dir}:0.5", documents="report", batch_size=1, packing_rows=1)))]
  epoch = order[: 2 * one + round(other / 2)]
  assert set(collections.Counter(epoch).values()) <= {1, 2, 3, 4}
  eot = Vocabulary(**tokens.read_card(tokens_dir)["vocabulary"]).eot
  of_first = {(eot, *row["report_ids"].tolist()) for row in tokens.open_tokens(tokens_dir, "train")}
  assert all(epoch.count(document) >= 2 for document in of_first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [("a", 1.0)]),
        ("a:2, b/c:0.5", [("a", 2.0), ("b/c", 0.5)]),
        ("/data/x:y,b", [("/data/x:y", 1.0), ("b", 1.0)]),
    ],
)
def test_folders_and_weights(text, expected):
  assert [(str(folder), weight) for folder, weight in parse_folders(text)] == expected
  with pytest.raises(UserError, match="must be more than 0"):
    parse_folders("a:0")


def test_sets_of_different_tokenizers_are_refused(tokens_dir, rich_dir, tmp_path):
  other = tmp_path / "other"
  other.mkdir()
  for path in rich_dir.iterdir():
    (other / path.name).write_bytes(path.read_bytes())
  card = json.loads((other / "dataset_card.json").read_text()) | {"image_tokenizer": "another"}
  (other / "dataset_card.json").write_text(json.dumps(card))
  with pytest.raises(UserError, match="another image tokenizer than"):
    make_plan(_config(f"{tokens_dir},{other}"))


def test_a_form_that_no_study_has_is_refused(tokens_dir):
  with pytest.raises(UserError, match="no study has what any of them needs"):
    next(train_iterator(_config(tokens_dir, documents="lateral report")))


def test_image_iterator_gives_all_pictures_in_range(studies_dir):
  table = studies.load_studies(studies_dir, "train")
  expected = {images.to_float(image).tobytes() for image in table.images}
  iterator = image_iterator(studies_dir, "train", batch_size=5, seed=0)
  seen = [next(iterator)["image"] for _ in range(6)]
  state = iterator.get_state()
  following = next(iterator)["image"]
  iterator.set_state(state)
  np.testing.assert_array_equal(next(iterator)["image"], following)
  iterator.close()
  assert seen[0].shape == (5, 16, 16, 1) and seen[0].dtype == np.float32
  assert {image.tobytes() for batch in seen for image in batch} == expected
