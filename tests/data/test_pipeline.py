import collections

import numpy as np
import pytest

from chexmix_jax.data import images, studies, tokens
from chexmix_jax.data.documents import make_document
from chexmix_jax.data.masking import MaskingConfig, ModalityMaskConfig
from chexmix_jax.data.pipeline import DataConfig, image_iterator, train_iterator
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

CONTEXT = 96
HALF = ModalityMaskConfig(prob=0.9, low=0.1, high=0.9, loss_on="visible")


def _config(folder, masked=False, **changes):
  masking = MaskingConfig(HALF, HALF) if masked else MaskingConfig()
  values = {"context": CONTEXT, "batch_size": 4, "packing_rows": 8} | changes
  return DataConfig(tokens=str(folder), masking=masking, **values)


def _take(number, *args):
  iterator = train_iterator(*args)
  try:
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


@pytest.fixture(scope="module")
def originals(tokens_dir):
  """The training documents by their targets, which no mask changes."""
  table = tokens.load_tokens(tokens_dir, "train")
  vocabulary = Vocabulary(**tokens.read_card(tokens_dir)["vocabulary"])
  made = [
      make_document(codes, text, vocabulary, CONTEXT)
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


def test_two_processes_share_each_epoch(tokens_dir, originals):
  config = _config(tokens_dir, batch_size=2, packing_rows=1)
  parts = [
      [targets for _, targets, _ in _documents(_take(60, config, p, 2))][:30] for p in range(2)
  ]
  for epoch in range(2):
    mine, others = (set(part[epoch * 15 : epoch * 15 + 15]) for part in parts)
    assert mine | others == set(originals) and not mine & others


def test_masks_depend_on_seed_epoch_and_document_alone(tokens_dir, originals):
  """Other batches, other packing and other processes: the same masks in the same epochs."""

  def masks(config, *process):
    found = collections.defaultdict(list)
    for inputs, targets, weights in _documents(_take(60, config, *process)):
      found[targets].append((inputs, weights))
    return found

  one = masks(_config(tokens_dir, masked=True, batch_size=1, packing_rows=1))
  packed = masks(_config(tokens_dir, masked=True, batch_size=4, packing_rows=16))
  halves = [masks(_config(tokens_dir, True, batch_size=2, packing_rows=1), p, 2) for p in range(2)]
  for document in originals:
    # Of each run the first epochs; packing may emit two of one document in the other order.
    assert set(one[document][:2]) <= set(packed[document])
    split = halves[0][document] + halves[1][document]
    assert set(one[document][:1]) <= set(split)
    assert one[document][0] != one[document][1]
  other = masks(_config(tokens_dir, True, batch_size=1, packing_rows=1, shuffle_seed=1))
  assert any(one[document][0] != other[document][0] for document in originals)


@pytest.mark.parametrize("taken", [0, 1, 5, 17])
def test_resumes_with_identical_batches(tokens_dir, taken):
  config = _config(tokens_dir, masked=True)
  whole = _take(25, config)
  first = train_iterator(config)
  for _ in range(taken):
    next(first)
  state = first.get_state()
  first.close()
  second = train_iterator(config)
  next(second)
  second.set_state(state)
  for expected in whole[taken:]:
    batch = next(second)
    for name, value in expected.items():
      np.testing.assert_array_equal(batch[name], value)
  second.close()


def test_a_batch_of_two_processes_has_half_the_rows(tokens_dir):
  (batch,) = _take(1, _config(tokens_dir), 1, 2)
  assert batch["inputs"].shape == (2, CONTEXT)
  with pytest.raises(UserError, match="multiple of 3"):
    train_iterator(_config(tokens_dir), 0, 3)


def test_a_context_too_short_for_the_image_is_refused(tokens_dir):
  with pytest.raises(UserError, match="use 20 or more"):
    train_iterator(_config(tokens_dir, context=19))


def test_long_reports_are_cut_to_the_context(tokens_dir):
  for _, targets, _ in _documents(_take(5, _config(tokens_dir, context=20))):
    assert len(targets) <= 20


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
