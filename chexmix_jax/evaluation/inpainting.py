"""Inpainting: hidden cells of a picture's code grid, filled by the model, drawn by the tokenizer.

Shape suffixes: N pictures, H height, W width, T codes of a picture in raster order.
"""

import dataclasses

import jax
import numpy as np

from chexmix_jax.data import studies, tokens
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation.consistency import Probes
from chexmix_jax.evaluation.evaluator import Context, Result
from chexmix_jax.inference.inpaint import METHODS, draw_mask, fill_codes
from chexmix_jax.labels import CHEXPERT_5
from chexmix_jax.metrics import bootstrap
from chexmix_jax.metrics.bootstrap import Figure
from chexmix_jax.metrics.feature_distances import FeatureDistances
from chexmix_jax.metrics.images import l1, masked_ssim, ms_ssim, ms_ssim_scales, psnr, ssim
from chexmix_jax.models.transformer import Params
from chexmix_jax.parallel.batches import map_rows

_NUM_EXAMPLES = 8
_GREY = 128  # Of a hidden cell in the examples.


@dataclasses.dataclass(frozen=True)
class InpaintingConfig:
  """The masks, and the work.

  Attributes:
    random_ratios: shares of the cells that are hidden, drawn by lot.
    top_ratios: shares of the rows that are hidden, from the top on.
    bottom_ratios: the same from the bottom on.
    block_ratios: shares of the cells that one rectangle hides, about.
    lungs_ratios: shares of the cells where lungs usually lie that are hidden, by lot below 1.
    findings: that probes on whole pictures should still read from filled ones; none: not asked.
    methods: ways to fill, of METHODS in chexmix_jax.inference.inpaint.
    num_studies: of the split, from its first on.
    num_validation: of the validation split, for the choice of a way to fill.
    num_mean: of the training split, for the mean picture.
    num_probe: of the training split, for the probes of findings.
    batch_size: pictures of a pass.
    lpips_weights: state dict of torchvision's alexnet for LPIPS; empty: not computed.
    fid_network: TorchScript for FID, such as inception-2015-12-05.pt; empty: not computed.
  """

  random_ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
  top_ratios: tuple[float, ...] = (0.5,)
  bottom_ratios: tuple[float, ...] = (0.5,)
  block_ratios: tuple[float, ...] = (0.25, 0.5)
  lungs_ratios: tuple[float, ...] = (1.0,)
  findings: tuple[str, ...] = CHEXPERT_5
  methods: tuple[str, ...] = METHODS
  num_studies: int = 64
  num_validation: int = 64
  num_mean: int = 1000
  num_probe: int = 600
  batch_size: int = 64
  lpips_weights: str = ""
  fid_network: str = ""

  def __post_init__(self):
    for shape, ratio in self.masks:
      # All cells where lungs lie are not all of the grid.
      if not 0 < ratio < 1 and (shape, ratio) != ("lungs", 1):
        raise UserError(f"{ratio} of the inpainting's {shape}_ratios must lie between 0 and 1.")
    for method in self.methods:
      if method not in METHODS:
        raise UserError(f"methods holds {method!r}, no way to fill; use some of {METHODS}.")
    for name in ("num_studies", "num_validation", "num_mean", "num_probe", "batch_size"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} of the inpainting must be positive.")

  @property
  def masks(self) -> tuple[tuple[str, float], ...]:
    """Shape and ratio of each mask."""
    by_shape = {
        "random": self.random_ratios, "top": self.top_ratios, "bottom": self.bottom_ratios,
        "block": self.block_ratios, "lungs": self.lungs_ratios,
    }  # fmt: skip
    return tuple((shape, ratio) for shape, ratios in by_shape.items() for ratio in ratios)


@dataclasses.dataclass(frozen=True)
class _Pictures:
  """The first N studies of one split: pictures, float32 in [0, 1], and their codes."""

  study_ids: list[str]
  patient_ids: list[str]
  original_NHW: np.ndarray
  codes_NT: np.ndarray


class Inpainting:
  """Most likely codes in place of hidden ones, against the original picture.

  Causal attention hides what lies after a cell, so masks at the top and at the bottom stand apart.
  The ways to fill are described in chexmix_jax.inference.inpaint.

  Values at a mask M such as `random/mask=0.50`, means over pictures or over all hidden codes:

    masked_psnr/M, masked_l1/M, masked_ssim/M   over the pixels of the hidden cells
    psnr/M, l1/M, ssim/M, ms_ssim/M             over the whole picture
    finding_auroc/M, finding_kappa/M, finding_kept/M, finding_invented/M
                                 of the chosen way, see chexmix_jax.evaluation.consistency: probes
                                 on this checkpoint read the picture, drawn and encoded again
    token_accuracy/M             share of the hidden codes that are met
    nll/M                        nats of a hidden code, of the model's distribution over codes
    lpips/M, fid/M               of the chosen way, whole pictures, where weights are given, see
                                 chexmix_jax.metrics.feature_distances; fid has no interval

  of the way with the better masked PSNR in the validation split, where each picture has one of the
  masks in turn, and with `/one_pass` and so on at the end those of each. PSNR is in dB, of
  each picture by itself (at most 100); pixels are in [0, 1] and not rounded. The metrics are
  described in chexmix_jax.metrics.images, the masks at draw_mask in chexmix_jax.inference.inpaint:
  lungs are a template, not a segmentation. A picture has no masked_ssim, and does not count for it,
  where all that is hidden of it lies within 5 pixels of its edge. The whole picture is drawn from
  codes, the visible cells too. Baselines of all but the codes, with the same visible cells:

    mean_fill/…           hidden pixels have the mean of the original's visible ones
    mean_image/…          hidden pixels are those of the mean training picture
    tokenizer_ceiling/…   the tokenizer draws the true codes; the only one of fid

  Masks depend on seed, number of the study, shape and ratio alone. Raises UserError where a split
  is missing, a ratio hides none or all of the grid, or weights that are given cannot be used.
  """

  def __init__(self, context: Context, config: InpaintingConfig = InpaintingConfig()):
    self._context = context
    self._config = config
    self._test = self._load(context.split, config.num_studies)
    self._validation = self._load("val", config.num_validation)
    self._distances = FeatureDistances(
        self._test.original_NHW, config.lpips_weights, config.fid_network, config.batch_size
    )
    self._ceiling_NHW = self._draw(self._test.codes_NT)
    self._ceiling_fid = self._distances.fid(self._ceiling_NHW)
    self._probes = Probes(
        context, config.findings, config.num_studies, config.num_probe, config.batch_size
    )
    self._baseline_codes: dict[str, np.ndarray] = {}
    self._baselines = self._score_baselines()

  def run(self, params: Params) -> Result:
    """Scores one checkpoint."""
    chosen = self._choose(params)
    take = slice(_NUM_EXAMPLES)
    found: dict[str, Figure] = {}
    chosen_NHW: dict[str, np.ndarray] = {}
    artefacts = {"way": np.array(chosen), "study_ids": np.array(self._test.study_ids[take])}
    for shape, ratio in self._config.masks:
      mask = f"{shape}/mask={ratio:.2f}"
      hidden_NT = self._hidden(shape, ratio)
      for way in self._config.methods:
        scores, drawn_NHW = self._score(params, self._test, hidden_NT, way)
        found |= {f"{name}/{mask}/{way}": score for name, score in scores.items()}
        if way == chosen:
          found |= {f"{name}/{mask}": score for name, score in scores.items()}
          artefacts[f"examples/{mask}"] = self._examples(hidden_NT, drawn_NHW, take)
          chosen_NHW[mask] = drawn_NHW
    values = {"num_studies": float(len(self._test.study_ids))}
    for mask, drawn_NHW in chosen_NHW.items():
      lpips, fid = self._distances.lpips(drawn_NHW), self._distances.fid(drawn_NHW)
      found |= {f"{name}/{mask}": figure for name, figure in lpips.items()}
      values |= {f"{name}/{mask}": value for name, value in fid.items()}
      values |= {
          f"tokenizer_ceiling/{name}/{mask}": value for name, value in self._ceiling_fid.items()
      }
    if self._probes.findings:
      found |= self._read_findings(params, chosen_NHW)
    pixels = self._test.original_NHW.shape[1:]
    options = {
        "fill": "most likely code,way by validation",
        "pixels": "{}x{},in [0,1]".format(*pixels),
        "psnr": "mean over pictures,at most 100 dB",
        "ssim": "gaussian 11x11,sigma 1.5",
        "ms_ssim": f"{ms_ssim_scales(*pixels)} scales",
        **self._distances.options,
    }
    return Result(values, artefacts, found | self._baselines, self._test.patient_ids, options)

  def _load(self, split: str, number: int) -> _Pictures:
    context = self._context
    table = tokens.load_tokens(context.tokens, split, need=("pictures",))
    codes_NT = table.codes[:number]
    return _Pictures(
        study_ids=table.study_ids[:number],
        patient_ids=table.patient_ids[:number],
        original_NHW=_originals(context, split, len(codes_NT)),
        codes_NT=codes_NT,
    )

  def _draw(self, codes_NT: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], float32 (N, H, W), that the tokenizer draws; colour is averaged."""
    tokenizer = self._context.image_tokenizer
    pixels_NHWC = tokenizer.decode(codes_NT.reshape(-1, *tokenizer.grid))
    return (pixels_NHWC.mean(-1) + 1) / 2

  def _encode(self, drawn_NHW: np.ndarray) -> np.ndarray:
    """Codes (N, T) of pictures in [0, 1]."""
    tokenizer = self._context.image_tokenizer
    pixels_NHWC = np.clip(2 * drawn_NHW - 1, -1, 1)[..., None]
    pixels_NHWC = np.repeat(pixels_NHWC, tokenizer.config.in_channels, axis=3)
    return tokenizer.encode(pixels_NHWC).reshape(len(drawn_NHW), -1)

  def _read_findings(
      self, params: Params, drawn_NHW: dict[str, np.ndarray]
  ) -> dict[str, Figure]:
    """The figures of findings by mask, and those of the baselines."""
    reader = self._probes.fit(params)
    original_NF = reader.scores(self._test.codes_NT)

    def figures(codes_NT: np.ndarray) -> dict[str, Figure]:
      return reader.figures(original_NF, reader.scores(codes_NT))

    by_name = {mask: figures(self._encode(drawn)) for mask, drawn in drawn_NHW.items()}
    by_name |= {name: figures(codes_NT) for name, codes_NT in self._baseline_codes.items()}
    # The same under every mask.
    ceiling = figures(self._encode(self._ceiling_NHW))
    by_name |= {f"tokenizer_ceiling/{mask}": ceiling for mask in drawn_NHW}
    found: dict[str, Figure] = {}
    for name, read in by_name.items():
      *kind, shape, ratio = name.split("/")
      found |= {"/".join([*kind, key, shape, ratio]): figure for key, figure in read.items()}
    return found

  def _hidden(self, shape: str, ratio: float) -> np.ndarray:
    """Which codes of the test pictures are hidden, bool (N, T)."""
    grid, seed = self._context.image_tokenizer.grid, self._context.seed
    numbers = range(len(self._test.codes_NT))
    return np.stack([draw_mask(shape, ratio, grid, seed, number) for number in numbers])

  def _pixels(self, hidden_NT: np.ndarray) -> np.ndarray:
    """Which pixels are hidden, bool (N, H, W)."""
    height, width = self._context.image_tokenizer.grid
    cell = self._test.original_NHW.shape[1] // height
    return hidden_NT.reshape(-1, height, width).repeat(cell, 1).repeat(cell, 2)

  def _choose(self, params: Params) -> str:
    """The way with the best masked PSNR in the validation split."""
    grid, masks = self._context.image_tokenizer.grid, self._config.masks
    hidden_NT = np.stack([
        draw_mask(*masks[number % len(masks)], grid, self._context.seed, number)
        for number in range(len(self._validation.codes_NT))
    ])
    every = np.ones((1, len(hidden_NT)))
    psnr = {
        way: self._score(params, self._validation, hidden_NT, way)[0]["masked_psnr"](every)[0]
        for way in self._config.methods
    }
    return max(self._config.methods, key=lambda way: psnr[way])

  def _score(
      self, params: Params, pictures: _Pictures, hidden_NT: np.ndarray, way: str
  ) -> tuple[dict[str, Figure], np.ndarray]:
    """Scores of one way, and what it drew, (N, H, W)."""
    context = self._context
    filled = fill_codes(
        context.model, context.vocabulary, params, pictures.codes_NT, hidden_NT, way,
        self._config.batch_size, f"inpainting, {way}",
    )  # fmt: skip
    drawn_NHW = self._draw(filled["codes"])
    scores = self._compare(pictures.original_NHW, drawn_NHW, hidden_NT)
    is_met_NT = filled["codes"] == pictures.codes_NT
    scores["token_accuracy"] = _over_hidden(is_met_NT, hidden_NT)
    scores["nll"] = _over_hidden(-filled["log_prob"], hidden_NT)
    return scores, drawn_NHW

  def _compare(
      self, original_NHW: np.ndarray, drawn_NHW: np.ndarray, hidden_NT: np.ndarray
  ) -> dict[str, Figure]:
    rows = {"original": original_NHW, "drawn": drawn_NHW, "hidden": self._pixels(hidden_NT)}
    scores = map_rows(picture_scores, rows, self._config.batch_size, "inpainting, scores")
    return {name: bootstrap.mean(values_N) for name, values_N in scores.items()}

  def _score_baselines(self) -> dict[str, Figure]:
    original_NHW, ceiling_NHW = self._test.original_NHW, self._ceiling_NHW
    mean_HW = _originals(self._context, "train", self._config.num_mean).mean(0)
    ceiling_lpips = self._distances.lpips(ceiling_NHW)  # The same under every mask.
    found: dict[str, Figure] = {}
    for shape, ratio in self._config.masks:
      hidden_NT = self._hidden(shape, ratio)
      hidden_NHW = self._pixels(hidden_NT)
      mean_N11 = np.mean(original_NHW, axis=(1, 2), where=~hidden_NHW, keepdims=True)
      drawn = {
          "mean_fill": np.where(hidden_NHW, mean_N11, ceiling_NHW),
          "mean_image": np.where(hidden_NHW, mean_HW, ceiling_NHW),
          "tokenizer_ceiling": ceiling_NHW,
      }
      for name, drawn_NHW in drawn.items():
        is_ceiling = name == "tokenizer_ceiling"
        if self._probes.findings and not is_ceiling:
          codes_NT = self._encode(drawn_NHW)
          self._baseline_codes[f"{name}/{shape}/mask={ratio:.2f}"] = codes_NT
        scores = self._compare(original_NHW, drawn_NHW, hidden_NT)
        scores |= ceiling_lpips if is_ceiling else self._distances.lpips(drawn_NHW)
        found |= {
            f"{name}/{key}/{shape}/mask={ratio:.2f}": score for key, score in scores.items()
        }
    return found

  def _examples(self, hidden_NT: np.ndarray, drawn_NHW: np.ndarray, take: slice) -> np.ndarray:
    """uint8 (N, 4, H, W): original, hidden cells in grey, filled, tokenizer's ceiling."""
    original_NHW = self._test.original_NHW[take]
    masked_NHW = np.where(self._pixels(hidden_NT[take]), _GREY / 255, original_NHW)
    pixels = [original_NHW, masked_NHW, drawn_NHW[take], self._ceiling_NHW[take]]
    return np.rint(np.stack(pixels, axis=1) * 255).astype(np.uint8)


def _originals(context: Context, split: str, number: int) -> np.ndarray:
  """The first pictures of a split, float32 (N, H, W) in [0, 1]."""
  source = studies.open_studies(context.studies, split, need=("pictures",))
  rows = (source[i] for i in range(min(number, len(source))))
  return np.stack([studies.first_picture(row) for row in rows]).astype(np.float32) / 255


def _over_hidden(values_NT: np.ndarray, hidden_NT: np.ndarray) -> Figure:
  """A score of each hidden code."""
  return bootstrap.ratio(np.where(hidden_NT, values_NT, 0).sum(1), hidden_NT.sum(1))


def picture_scores(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """masked_psnr, masked_l1, masked_ssim, psnr, l1, ssim and ms_ssim, (N,) each.

  `rows` has `original` and `drawn`, (N, H, W) in [0, 1], and `hidden`, bool (N, H, W).
  """
  pictures, hidden_NHW = (rows["original"], rows["drawn"]), rows["hidden"]
  return {
      "masked_psnr": psnr(*pictures, hidden_NHW),
      "masked_l1": l1(*pictures, hidden_NHW),
      "masked_ssim": masked_ssim(*pictures, hidden_NHW),
      "psnr": psnr(*pictures),
      "l1": l1(*pictures),
      "ssim": ssim(*pictures),
      "ms_ssim": ms_ssim(*pictures),
  }
