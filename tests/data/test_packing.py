import json

import numpy as np
import pytest

from chexmix_jax.data.documents import parse_forms
from chexmix_jax.data.packing import Entry, RowPacker, StudySet, document_lengths, make_epoch
from chexmix_jax.errors import UserError

CONTEXT = 100


def _set(number, low, high, seed=0, weight=1.0, forms=1):
  lengths = np.random.default_rng(seed).integers(low, high, (number, forms)).astype(np.int32)
  return StudySet(lengths, weight)


def _packer(sets, rows=16, seed=0, context=CONTEXT):
  forms = parse_forms("image report")
  return RowPacker(lambda epoch: make_epoch(sets, forms, seed, epoch), context, rows)


def _take(packer, number):
  return [packer.next_row() for _ in range(number)]


def test_a_row_holds_whole_documents_and_no_more_than_fit():
  study_set = _set(200, 5, 60)
  for row in _take(_packer([study_set]), 100):
    assert row and sum(study_set.lengths[entry.number, 0] for entry in row) <= CONTEXT


@pytest.mark.parametrize("context, most", [(100, 15), (2048, 63)])
def test_a_row_of_short_documents_holds_no_more_than_attention_kernels_are_told_of(context, most):
  rows = _take(_packer([_set(3000, 1, 5)], context=context), 20)
  assert {len(row) for row in rows} == {most}


def test_every_epoch_has_every_study_once_in_another_order():
  order = [entry for row in _take(_packer([_set(40, 20, 90)], rows=1), 200) for entry in row]
  epochs = [[e.number for e in order if e.epoch == epoch] for epoch in range(2)]
  assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
  assert epochs[0] != epochs[1]


def test_rows_are_filled_to_95_percent():
  # The last are documents of 1,024 codes and reports of 23 - 175 tokens in the context of
  # configs/stage1_2p8b.py.
  for low, high, context in ((5, 40, 100), (10, 90, 100), (1050, 1203, 4608)):
    study_set = _set(3000, low, high)
    rows = _take(_packer([study_set], rows=64, context=context), 400)
    used = [sum(study_set.lengths[entry.number, 0] for entry in row) for row in rows]
    assert np.mean(used) / context > 0.95


def test_weights_repeat_and_thin_out_a_set():
  sets = [_set(100, 10, 30, weight=2.5), _set(40, 10, 30, seed=1, weight=0.25), _set(7, 10, 30)]
  for epoch in range(3):
    entries, lengths = make_epoch(sets, parse_forms("image"), 0, epoch)
    assert np.bincount(entries[:, 1]).tolist() == [250, 10, 7] and len(lengths) == 267
    of_first = np.bincount(entries[entries[:, 1] == 0, 2])
    assert sorted(set(of_first.tolist())) == [2, 3]
  thinned = [
      tuple(np.sort(e[e[:, 1] == 1, 2]))
      for e in (make_epoch(sets, parse_forms("image"), 0, epoch)[0] for epoch in range(5))
  ]
  assert len(set(thinned)) > 1


def test_forms_are_drawn_by_weight_among_those_that_a_study_can_have():
  lengths = np.tile(np.array([[10, 20, 0]], np.int32), (4000, 1))
  lengths[:1000] = [0, 20, 30]
  forms = parse_forms("image:1, report:3, image report:3")
  entries, drawn = make_epoch([StudySet(lengths, 1.0)], forms, 0, 0)
  first = entries[:, 2] < 1000
  share = np.bincount(entries[~first, 3], minlength=3) / 3000
  np.testing.assert_allclose(share, [0.25, 0.75, 0], atol=0.03)
  share = np.bincount(entries[first, 3], minlength=3) / 1000
  np.testing.assert_allclose(share, [0, 0.5, 0.5], atol=0.05)
  np.testing.assert_array_equal(drawn, lengths[entries[:, 2], entries[:, 3]])


def test_studies_without_any_form_are_left_out():
  index = {name: np.array(values) for name, values in {
      "pictures": [1, 0, 2], "frontal": [1, 0, 1], "lateral": [0, 0, 1], "report": [5, 6, 0],
      "prior": [0, 0, 0],
  }.items()}  # fmt: skip
  forms = parse_forms("image report, frontal lateral, prior report")
  lengths = document_lengths(index, forms, num_codes=4)
  np.testing.assert_array_equal(lengths, [[12, 0, 0], [0, 0, 0], [0, 12, 0]])
  entries, _ = make_epoch([StudySet(lengths, 1.0)], forms, 0, 0)
  assert sorted(entries[:, 2]) == [0, 2]
  with pytest.raises(UserError, match=r"data\.documents"):
    _packer([StudySet(np.zeros((3, 1), np.int32), 1.0)])


@pytest.mark.parametrize("taken", [0, 1, 7, 60])
def test_goes_on_from_a_state_that_is_json(taken):
  sets = [_set(50, 5, 60), _set(9, 5, 60, seed=1, weight=1.5)]
  whole = _take(_packer(sets), 100)
  first = _packer(sets)
  _take(first, taken)
  state = json.loads(json.dumps(first.get_state()))
  _take(first, 3)
  second = _packer(sets)
  second.set_state(state)
  assert _take(second, 100 - taken) == whole[taken:]
  assert all(isinstance(entry, Entry) for row in whole for entry in row)


def test_the_order_depends_on_the_seed():
  assert _take(_packer([_set(50, 5, 60)]), 9) != _take(_packer([_set(50, 5, 60)], seed=1), 9)
