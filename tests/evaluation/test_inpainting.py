"""Figures of inpainting, and the scores of pictures."""

import dataclasses
import sys
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexmix_jax.data import studies, tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import inpainting
from chexmix_jax.evaluation.inpainting import (
    Inpainting,
    InpaintingConfig,
    picture_scores,
)
from chexmix_jax.inference import inpaint
from chexmix_jax.inference.inpaint import METHODS, draw_mask, fill_codes
from chexmix_jax.metrics import bootstrap, images

CONFIG = InpaintingConfig(
    random_ratios=(0.5,), block_ratios=(0.5,), methods=METHODS, num_studies=6, num_validation=5,
    num_mean=20, batch_size=4,
)  # fmt: skip
MASKS = {
    "random/mask=0.50": ("random", 0.5),
    "top/mask=0.50": ("top", 0.5),
    "bottom/mask=0.50": ("bottom", 0.5),
    "block/mask=0.50": ("block", 0.5),
    "lungs/mask=1.00": ("lungs", 1.0),
}
SCORES = ("masked_psnr", "masked_l1", "masked_ssim", "psnr", "l1", "ssim", "ms_ssim")


@pytest.fixture(scope="module")
def evaluation(context):
  return Inpainting(context, CONFIG)


@pytest.fixture(scope="module")
def result(evaluation, params):
  return evaluation.run(params)


@pytest.fixture(scope="module")
def pictures(context):
  """The first six of the test split, (6, 16, 16) in [0, 1]."""
  return studies.load_studies(context.studies, "test").images[:6] / 255


def cells(pixels):
  """Which of 16 x 16 pixels lie in hidden cells of a 4 x 4 grid, one after the other."""
  return np.array([[pixels[(y // 4) * 4 + x // 4] for x in range(16)] for y in range(16)])


def test_scores_of_a_known_error():
  original = np.full((1, 16, 16), 0.5, np.float32)
  hidden = np.zeros((1, 16, 16), bool)
  hidden[:, :4] = True
  drawn = np.where(hidden, 0.6, 0.5).astype(np.float32)
  score = jax.jit(picture_scores)
  scores = score({"original": original, "drawn": drawn, "hidden": hidden})
  np.testing.assert_allclose(scores["masked_psnr"], 20, atol=1e-4)
  np.testing.assert_allclose(scores["psnr"], 20 + 10 * np.log10(4), atol=1e-4)
  np.testing.assert_allclose(scores["masked_l1"], 0.1, atol=1e-6)
  np.testing.assert_allclose(scores["l1"], 0.025, atol=1e-6)
  np.testing.assert_array_equal(scores["masked_ssim"], np.nan)  # No window is centred there.
  perfect = score({"original": original, "drawn": original, "hidden": hidden})
  np.testing.assert_allclose(perfect["psnr"], 100, atol=1e-4)


def test_figures_of_a_run(result, context, params, pictures, values_of):
  values = values_of(result)
  assert values["num_studies"] == 6
  way = str(result.artefacts["way"])
  codes = tokens.load_tokens(context.tokens, "test").codes[:6]
  for number, (mask, shape_and_ratio) in enumerate(MASKS.items()):
    for name in (*SCORES, "token_accuracy", "nll"):
      assert values[f"{name}/{mask}"] == values[f"{name}/{mask}/{way}"]
    hidden = np.stack([draw_mask(*shape_and_ratio, (4, 4), context.seed, i) for i in range(6)])
    filled = fill_codes(
        context.model, context.vocabulary, params, codes, hidden, way, batch_size=4
    )
    drawn = context.image_tokenizer.decode(filled["codes"].reshape(6, 4, 4))
    drawn = (drawn[..., 0] + 1) / 2
    errors = [
        np.mean((d - p)[cells(h)] ** 2) for d, p, h in zip(drawn, pictures, hidden, strict=True)
    ]
    np.testing.assert_allclose(
        values[f"masked_psnr/{mask}"], np.mean(-10 * np.log10(errors)), atol=1e-3
    )
    np.testing.assert_allclose(
        values[f"token_accuracy/{mask}"], np.mean((filled["codes"] == codes)[hidden]), atol=1e-6
    )
    np.testing.assert_allclose(
        values[f"nll/{mask}"], -np.mean(filled["log_prob"][hidden]), atol=1e-4
    )
    examples = result.artefacts[f"examples/{mask}"]
    assert examples.shape == (6, 4, 16, 16) and examples.dtype == np.uint8
    np.testing.assert_array_equal(examples[:, 0], np.rint(pictures * 255))
    where = np.stack([cells(h) for h in hidden])
    likeness = images.masked_ssim(pictures, drawn, where)
    np.testing.assert_allclose(values[f"masked_ssim/{mask}"], likeness.mean(), atol=1e-5)
    assert np.all(examples[:, 1][where] == 128)
    np.testing.assert_array_equal(examples[:, 1][~where], examples[:, 0][~where])
    np.testing.assert_allclose(examples[:, 2], drawn * 255, atol=0.51)
    assert number or values[f"nll/{mask}"] > 0


def test_baselines_stand_beside_every_figure(result, context, pictures, values_of):
  values = values_of(result)
  mean_image = studies.load_studies(context.studies, "train").images[:20].mean(0) / 255
  for mask, shape_and_ratio in MASKS.items():
    errors = {"mean_fill": [], "mean_image": []}
    for number, picture in enumerate(pictures):
      hidden = cells(draw_mask(*shape_and_ratio, (4, 4), context.seed, number))
      errors["mean_fill"].append(np.mean((picture[hidden] - picture[~hidden].mean()) ** 2))
      errors["mean_image"].append(np.mean((picture - mean_image)[hidden] ** 2))
    for name, found in errors.items():
      np.testing.assert_allclose(
          values[f"{name}/masked_psnr/{mask}"], np.mean(-10 * np.log10(found)), atol=1e-3
      )
    for name in ("mean_fill", "mean_image", "tokenizer_ceiling"):
      for score in SCORES:
        assert np.isfinite(values[f"{name}/{score}/{mask}"])
  assert len({values[f"tokenizer_ceiling/psnr/{mask}"] for mask in MASKS}) == 1


@pytest.mark.parametrize("best", METHODS)
def test_the_way_that_validates_better_is_the_headline(
    evaluation, params, monkeypatch, values_of, best
):
  def perfect(config, vocabulary):
    return lambda params, rows: {
        "codes": rows["codes"], "log_prob": jnp.zeros(rows["codes"].shape)
    }  # fmt: skip

  monkeypatch.setitem(inpaint._FILLS, best, perfect)
  result = evaluation.run(params)
  values = values_of(result)
  assert str(result.artefacts["way"]) == best
  for mask in MASKS:
    assert values[f"token_accuracy/{mask}"] == 1 and values[f"nll/{mask}"] == 0
    others = [way for way in METHODS if way != best]
    assert all(values[f"token_accuracy/{mask}/{other}"] < 1 for other in others)
    # Nothing is better than the true codes but what the tokenizer makes of them.
    for score in ("masked_psnr", "masked_l1", "psnr", "l1", "ssim", "finding_kappa"):
      ceiling = values[f"tokenizer_ceiling/{score}/{mask}"]
      np.testing.assert_allclose(values[f"{score}/{mask}"], ceiling, atol=1e-6)


def test_findings_are_read_from_what_is_drawn(result, context, params):
  """The figures of a mask are of the drawn picture's codes, and none are there without findings."""
  names = ("finding_auroc", "finding_kappa", "finding_kept", "finding_invented")
  for mask in MASKS:
    for name in names:
      for kind in ("", "mean_fill/", "mean_image/", "tokenizer_ceiling/"):
        assert f"{kind}{name}/{mask}" in result.figures
  config = dataclasses.replace(CONFIG, findings=(), methods=("one_pass",), random_ratios=())
  without = Inpainting(context, config).run(params)
  assert not any("finding" in name for name in without.figures)


def test_bad_settings_are_named(context):
  with pytest.raises(UserError, match=r"1\.0 of the inpainting's random_ratios"):
    InpaintingConfig(random_ratios=(0.5, 1.0))
  with pytest.raises(UserError, match=r"1\.5 of the inpainting's lungs_ratios"):
    InpaintingConfig(lungs_ratios=(1.0, 1.5))
  with pytest.raises(UserError, match="methods holds 'guess'"):
    InpaintingConfig(methods=("guess",))
  with pytest.raises(UserError, match="num_studies=0"):
    InpaintingConfig(num_studies=0)
  with pytest.raises(UserError, match=r"top mask of 0\.1 hides none or all of 4 x 4 codes"):
    Inpainting(context, dataclasses.replace(CONFIG, top_ratios=(0.1,)))
  with pytest.raises(UserError, match="has no split 'other'"):
    Inpainting(dataclasses.replace(context, split="other"), CONFIG)


def test_nothing_of_features_is_there_without_weights(result, values_of):
  assert not any("lpips" in name or "fid" in name for name in values_of(result))
  assert result.options.keys().isdisjoint({"lpips", "fid"})


def test_feature_distances_stand_beside_the_rest_where_weights_are_given(
    result, context, params, pictures, monkeypatch, values_of
):
  """By a stand-in for both: the mean of what is drawn above the original."""

  class Distances:
    options: ClassVar = {"lpips": "alexnet@0", "fid": "means@1"}

    def __init__(self, original, lpips_weights, fid_network, batch_size):
      assert (lpips_weights, fid_network, batch_size) == ("a.pth", "b.pt", 4)
      np.testing.assert_allclose(original, pictures, atol=1e-6)
      self.original = original

    def lpips(self, drawn):
      return {"lpips": bootstrap.mean((drawn - self.original).mean((1, 2)))}

    def fid(self, drawn):
      return {"fid": float((drawn - self.original).mean())}

  monkeypatch.setattr(inpainting, "FeatureDistances", Distances)
  config = dataclasses.replace(CONFIG, lpips_weights="a.pth", fid_network="b.pt", findings=())
  found = Inpainting(context, config).run(params)
  assert Distances.options.items() <= found.options.items()
  assert not any("fid" in name for name in found.figures)  # It has no interval.
  values = values_of(found)
  for mask in MASKS:
    assert values[f"lpips/{mask}"] == pytest.approx(values[f"fid/{mask}"], abs=1e-6)
    filled = found.artefacts[f"examples/{mask}"][:, 2] / 255
    assert values[f"fid/{mask}"] == pytest.approx((filled - pictures).mean(), abs=2e-3)
    ceiling = values[f"tokenizer_ceiling/fid/{mask}"]
    assert values[f"tokenizer_ceiling/lpips/{mask}"] == pytest.approx(ceiling, abs=1e-6)
    for name in ("mean_fill", "mean_image"):
      assert f"{name}/lpips/{mask}" in found.figures and f"{name}/fid/{mask}" not in values
  assert len({values[f"tokenizer_ceiling/fid/{mask}"] for mask in MASKS}) == 1
  assert len({values[f"mean_fill/lpips/{mask}"] for mask in MASKS}) == len(MASKS)
  # All else is as without.
  shared = {name for name in result.figures if "finding" not in name}
  assert shared | {name for name in found.figures if "lpips" in name} == found.figures.keys()


def test_weights_that_cannot_be_used_are_named_before_anything_is_drawn(
    context, monkeypatch, tmp_path
):
  monkeypatch.setitem(sys.modules, "torch", None)
  monkeypatch.setattr(Inpainting, "_draw", lambda *_: pytest.fail("a picture was drawn"))
  config = dataclasses.replace(CONFIG, fid_network=str(tmp_path / "network.pt"))
  with pytest.raises(UserError, match="fid_network is given, but torch cannot be imported"):
    Inpainting(context, config)
