import dataclasses

import numpy as np
import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

VOCABULARIES = [
    Vocabulary.sentencepiece(300, 64), Vocabulary.bpe(311, 64), Vocabulary.published(),
    Vocabulary.sentencepiece(300, 64).extended(3), Vocabulary.published().extended(5),
]  # fmt: skip


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_each_id_has_one_role(vocabulary):
  ids = np.arange(vocabulary.size)
  special = [vocabulary.boi, vocabulary.eoi, vocabulary.eot, vocabulary.mask, vocabulary.pad]
  is_special = np.isin(ids, special)
  roles = is_special.astype(int) + vocabulary.is_image(ids) + vocabulary.is_text(ids)
  assert roles.max() == 1
  assert vocabulary.is_image(ids).sum() == vocabulary.num_codes


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_codes_and_ids_are_inverse(vocabulary):
  codes = np.array([[0, 1], [5, vocabulary.num_codes - 1]])
  ids = vocabulary.codes_to_ids(codes)
  assert vocabulary.is_image(ids).all()
  np.testing.assert_array_equal(vocabulary.ids_to_codes(ids), codes)


def test_published_layout():
  vocabulary = Vocabulary.published()
  assert vocabulary.size == 58562
  assert vocabulary.codes_to_ids(np.array([0, 8191])).tolist() == [50368, 58559]
  assert (vocabulary.boi, vocabulary.eoi, vocabulary.eot) == (50295, 50296, 50256)
  assert (vocabulary.mask, vocabulary.pad) == (58560, 58561)
  assert not vocabulary.is_text(np.array([50256])).any()


def test_the_published_layout_at_another_size():
  vocabulary = Vocabulary.bpe(num_text=311, num_codes=64)
  assert (vocabulary.eot, vocabulary.boi, vocabulary.eoi) == (272, 311, 312)
  assert (vocabulary.image_offset, vocabulary.size) == (311 + 73, 311 + 73 + 64 + 2)
  assert vocabulary.is_text(np.arange(vocabulary.size)).sum() == 310


def test_a_report_ends_with_eot_where_it_is_a_text_id():
  assert Vocabulary.published().report_end == 50256
  own = Vocabulary.sentencepiece(300, 64)
  assert own.report_end == own.boi


def test_every_text_id_of_our_own_layout_is_text():
  vocabulary = Vocabulary.sentencepiece(300, 64)
  np.testing.assert_array_equal(np.flatnonzero(vocabulary.is_text(np.arange(vocabulary.size))),
                                np.arange(300))  # fmt: skip


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_dict_round_trip(vocabulary):
  assert Vocabulary(**vocabulary.to_dict()) == vocabulary


def test_added_text_tokens_lie_behind_all_other_ids():
  for base in VOCABULARIES[:3]:
    extended = base.extended(3)
    text = np.arange(extended.text_vocab_size)
    ids = extended.text_to_ids(text)
    np.testing.assert_array_equal(ids, [*range(base.num_text), *range(base.size, base.size + 3)])
    np.testing.assert_array_equal(extended.ids_to_text(ids), text)
    assert extended.is_text(ids[-3:]).all()
    everywhere = np.arange(base.size)
    np.testing.assert_array_equal(extended.is_text(everywhere), base.is_text(everywhere))
  assert VOCABULARIES[0].size == 384 and VOCABULARIES[0].extended(3).size == 448
  assert VOCABULARIES[2].extended(3).size == 58565
  with pytest.raises(UserError, match="was extended before"):
    VOCABULARIES[3].extended(1)


def test_a_card_says_nothing_of_tokens_where_none_were_added():
  assert list(Vocabulary.published().to_dict())[-1] == "pad"


@pytest.mark.parametrize(
    "change",
    [{"boi": 301}, {"mask": 310}, {"pad": 10_000}, {"num_text": 400}, {"num_codes": 1000}],
)
def test_ids_that_collide_are_refused(change):
  with pytest.raises(UserError):
    dataclasses.replace(Vocabulary.sentencepiece(300, 64), **change)
