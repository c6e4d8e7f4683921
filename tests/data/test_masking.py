import numpy as np
import pytest

from chexmix_jax.data.documents import IMAGE, SPECIAL, TEXT, Text, make_document
from chexmix_jax.data.masking import (
    MaskingConfig,
    ModalityMaskConfig,
    mask_codes,
    mask_document,
)
from chexmix_jax.errors import UserError
from chexmix_jax.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary.sentencepiece(num_text=40, num_codes=64)
NO_CUTS = np.zeros(0, np.int32)
DOCUMENT = make_document([np.arange(64), Text(np.arange(30), NO_CUTS)], VOCABULARY, 1000)


def _mask(image=None, text=None, seed=0, document=DOCUMENT):
  config = MaskingConfig(
      ModalityMaskConfig(**(image or {})), ModalityMaskConfig(**(text or {}))
  )
  return mask_document(document, config, VOCABULARY, np.random.default_rng(seed))


def test_mask_codes_hits_the_ratio_exactly_in_each_row():
  codes = np.zeros((7, 64), np.int32)
  for ratio, count in ((0.0, 0), (0.25, 16), (0.3, 19), (0.5, 32), (1.0, 64)):
    mask = mask_codes(np.random.default_rng(0), codes, ratio)
    assert mask.shape == codes.shape and mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(-1), count)
  half = mask_codes(np.random.default_rng(0), codes, 0.5)
  assert len({row.tobytes() for row in half}) == 7


def test_mask_codes_is_uniform_over_positions():
  mask = mask_codes(np.random.default_rng(0), np.zeros((20000, 8)), 0.5)
  np.testing.assert_allclose(mask.mean(0), 0.5, atol=0.02)


def test_stage_one_changes_nothing():
  result = _mask()
  np.testing.assert_array_equal(result["inputs"], DOCUMENT.tokens)
  np.testing.assert_array_equal(result["targets"], DOCUMENT.targets)
  np.testing.assert_array_equal(result["weights"], np.ones(len(DOCUMENT.tokens)))
  assert result["weights"].dtype == np.float32 and result["inputs"].dtype == np.int32


@pytest.mark.parametrize("seed", range(20))
def test_special_tokens_are_never_masked_and_targets_never_changed(seed):
  full = {"prob": 1.0, "low": 1.0, "high": 1.0}
  result = _mask(full, full, seed)
  special = DOCUMENT.modality == SPECIAL
  np.testing.assert_array_equal(result["inputs"][special], DOCUMENT.tokens[special])
  assert (result["inputs"][~special] == VOCABULARY.mask).all()
  np.testing.assert_array_equal(result["targets"], DOCUMENT.targets)
  assert (result["targets"] != VOCABULARY.mask).all()


def test_modalities_are_masked_at_their_own_ratio():
  result = _mask({"prob": 1.0, "low": 0.25, "high": 0.25}, {"prob": 1.0, "low": 0.5, "high": 0.5})
  masked = result["inputs"] == VOCABULARY.mask
  assert masked[DOCUMENT.modality == IMAGE].sum() == 16
  assert masked[DOCUMENT.modality == TEXT].sum() == 15
  unmasked = ~masked
  np.testing.assert_array_equal(result["inputs"][unmasked], DOCUMENT.tokens[unmasked])


def test_ratio_is_drawn_per_document():
  config = {"prob": 0.5, "low": 0.2, "high": 0.8}
  is_image = DOCUMENT.modality == IMAGE
  ratios = np.array([
      (_mask(config, seed=s)["inputs"][is_image] == VOCABULARY.mask).mean() for s in range(2000)
  ])
  drawn = ratios[ratios > 0]
  assert abs((ratios == 0).mean() - 0.5) < 0.04
  assert drawn.min() >= 0.19 and drawn.max() <= 0.81
  assert abs(drawn.mean() - 0.5) < 0.02 and drawn.std() > 0.15


def _small(monkeypatch, image_loss, text_loss):
  """boi i0 i1 i2 eoi eot t0 t1, with i1 and t0 masked."""
  fixed = {3: [False, True, False], 2: [True, False]}
  monkeypatch.setattr(
      "chexmix_jax.data.masking.mask_codes",
      lambda rng, codes, ratio: np.array(fixed[codes.shape[-1]]),
  )
  parts = [np.array([1, 2, 3]), Text(np.array([7, 8]), NO_CUTS)]
  document = make_document(parts, VOCABULARY, 1000)
  return _mask(
      {"loss_on": image_loss, "weight": 2.0}, {"loss_on": text_loss, "weight": 3.0},
      document=document,
  )  # fmt: skip


@pytest.mark.parametrize(
    ("image_loss", "text_loss", "expected"),
    [
        # Targets:       i0 i1 i2 eoi eot t0 t1 boi; i1 and t0 are the masked ones.
        ("all", "all", [2, 2, 2, 2, 2, 3, 3, 3]),
        ("masked", "visible", [0, 2, 0, 2, 2, 0, 3, 3]),
        ("visible", "masked", [2, 0, 2, 2, 2, 3, 0, 3]),
    ],
)
def test_loss_on_by_hand(monkeypatch, image_loss, text_loss, expected):
  result = _small(monkeypatch, image_loss, text_loss)
  np.testing.assert_array_equal(result["weights"], expected)
  mask, offset = VOCABULARY.mask, VOCABULARY.image_offset
  np.testing.assert_array_equal(
      result["inputs"],
      [VOCABULARY.boi, offset + 1, mask, offset + 3, VOCABULARY.eoi, VOCABULARY.eot, mask, 8],
  )


@pytest.mark.parametrize(("text_loss", "last"), [("masked", 0), ("visible", 3), ("all", 3)])
def test_the_target_after_a_cut_counts_as_visible(text_loss, last):
  parts = [np.array([1, 2, 3]), Text(np.array([7, 8]), NO_CUTS)]
  document = make_document(parts, VOCABULARY, 7)
  result = _mask(text={"loss_on": text_loss, "weight": 3.0}, document=document)
  assert result["targets"][-1] == 8 and result["weights"][-1] == last


def test_what_follows_an_image_has_its_weight_and_what_follows_a_text_the_texts():
  parts = [Text(np.array([7]), NO_CUTS), np.array([1]), np.array([2])]
  document = make_document(parts, VOCABULARY, 100)
  result = _mask({"weight": 2.0}, {"weight": 3.0}, document=document)
  # Targets: t, boi, i, eoi, boi, i, eoi, boi.
  np.testing.assert_array_equal(result["weights"], [3, 3, 2, 2, 2, 2, 2, 2])


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        # Targets: i eoi eot | q q eot | a boi.
        ((False, False, False), [2, 2, 2, 3, 3, 3, 3, 3]),
        ((False, True, False), [2, 2, 2, 0, 0, 0, 3, 3]),
        ((True, True, False), [0, 0, 0, 0, 0, 0, 3, 3]),
        ((True, False, True), [0, 0, 0, 3, 3, 3, 0, 0]),
    ],
)
def test_prompts_are_masked_as_others_and_carry_no_loss(prompts, expected):
  parts = [np.array([1]), Text(np.array([7, 8]), NO_CUTS), Text(np.array([9]), NO_CUTS)]
  settings = {"prob": 1.0, "low": 0.5, "high": 1.0}
  document, plain = (make_document(parts, VOCABULARY, 100, p) for p in (prompts, ()))
  result, of_plain = (
      _mask(settings | {"weight": 2.0}, settings | {"weight": 3.0}, 5, document=d)
      for d in (document, plain)
  )
  np.testing.assert_array_equal(result["weights"], expected)
  np.testing.assert_array_equal(result["inputs"], of_plain["inputs"])


@pytest.mark.parametrize(
    "values", [{"prob": 1.5}, {"low": 0.5, "high": 0.2}, {"high": 1.1}, {"weight": -1.0}]
)
def test_values_out_of_range_are_refused(values):
  with pytest.raises(UserError):
    ModalityMaskConfig(**values)
