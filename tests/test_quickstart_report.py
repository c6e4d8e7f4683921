"""The report over fabricated results: every figure arrives, nothing is loaded from elsewhere."""

import base64
import contextlib
import html.parser
import importlib.util
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from chexmix_jax import config as config_lib
from chexmix_jax.data import studies
from chexmix_jax.errors import UserError
from chexmix_jax.quickstart import QuickstartConfig
from chexmix_jax.quickstart_report import write_quickstart_report

RATIOS = (0.0, 0.5, 0.9)
FINDINGS = ("Cardiomegaly", "Edema")
LAYERS = 4
SECONDS = {"image tokenizer": 61.5, "stage 1": 100.0, "evaluations": 30.25}


def classification(rng, offset):
  values = {"num_findings": 2, "num_train": 30, "num_test": 10}
  auroc, random_init = rng.uniform(0.5, 0.6, (2, len(RATIOS), LAYERS, 2))
  auroc += offset
  for m, ratio in enumerate(RATIOS):
    name = f"auroc/mask={ratio:.2f}"
    values[name] = auroc[m, 2].mean()
    values[f"random_init/{name}"] = random_init[m, 1].mean()
    values |= {f"{name}/{finding}": auroc[m, 2, f] for f, finding in enumerate(FINDINGS)}
    values |= {f"{name}/layer={layer}": auroc[m, layer].mean() for layer in range(LAYERS)}
  arrays = {
      "findings": np.array(FINDINGS), "mask_ratios": np.array(RATIOS),
      "auroc": auroc, "layer": np.full(len(RATIOS), 2),
      "random_init/auroc": random_init, "random_init/layer": np.full(len(RATIOS), 1),
  }  # fmt: skip
  return values, arrays


def inpainting(rng, offset):
  values, arrays = {"num_studies": 8}, {"way": np.array("one_pass")}
  for mask in ("random/mask=0.25", "random/mask=0.50", "top/mask=0.50", "bottom/mask=0.50"):
    values[f"masked_psnr/{mask}"] = 17 + offset
    values[f"masked_psnr/{mask}/one_pass"] = 17 + offset
    values[f"masked_psnr/{mask}/iterative"] = 16 + offset
    values[f"mean_fill/masked_psnr/{mask}"] = 11.25
    values[f"mean_image/masked_psnr/{mask}"] = 14.0
    values[f"tokenizer_ceiling/masked_psnr/{mask}"] = 24.0
    arrays[f"examples/{mask}"] = rng.integers(0, 256, (8, 4, 16, 16), np.uint8)
  return values, arrays


def generation(offset, study_ids):
  values = {
      "finding_f1_micro": 0.6 + offset, "finding_f1_macro": 0.5, "side_accuracy": 0.9,
      "exact_match": 0.0, "finding_f1/Edema": 0.625, "num_studies": len(study_ids),
      "most_common_report/finding_f1_micro": 0.125,
      "most_common_positive_report/finding_f1_micro": 0.25,
  }  # fmt: skip
  texts = [f"No edema {i} <script>alert('{i}')</script> & \"quoted\"." for i in study_ids]
  arrays = {
      "study_ids": np.array(study_ids), "references": np.array(texts),
      "generated": np.array([f"Generated {offset} {i}" for i in study_ids]),
  }  # fmt: skip
  return values, arrays


def retrieval(offset):
  values = {"pool_size": 50}
  for direction in ("image_to_report", "report_to_image"):
    for k in (1, 5, 10):
      values[f"{direction}/recall@{k}"] = 0.05 * k + offset
      values[f"{direction}/recall@{k}/log_likelihood"] = 0.05 * k + offset
      values[f"{direction}/recall@{k}/cosine/layer=2"] = 0.01 * k
      values[f"chance/{direction}/recall@{k}"] = k / 50
    values[f"{direction}/median_rank"] = 9 - 20 * offset
    values[f"chance/{direction}/median_rank"] = 25
  chosen = {"image_to_report": "log_likelihood", "report_to_image": "cosine/layer=2"}
  return values, {f"{direction}/score": np.array(name) for direction, name in chosen.items()}


def write_lines(folder, names, number):
  folder.mkdir(parents=True)
  lines = ({"step": 20 * i, **{n: 1 / i for n in names}} for i in range(1, number + 1))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def fabricate(output, studies_dir):
  """What the steps of a quickstart leave behind, with made-up numbers."""
  shutil.copytree(studies_dir, output / "studies")
  rng = np.random.default_rng(0)
  study_ids = studies.load_studies(studies_dir, "test").study_ids
  for stage, offset in (("stage1", 0.0), ("stage2", 0.125)):
    folder = output / "evaluation" / stage
    folder.mkdir(parents=True)
    found = {
        "classification": classification(rng, offset), "inpainting": inpainting(rng, offset),
        "generation": generation(offset, study_ids), "retrieval": retrieval(offset),
    }  # fmt: skip
    for name, (values, arrays) in found.items():
      card = {
          "evaluation": name, "checkpoint_step": 80, "seed": 3, "values": values,
          "intervals": {}, "signature": f"evaluation:{name}|stage:{stage}",
      }  # fmt: skip
      (folder / f"{name}.json").write_text(json.dumps(card))
      np.savez(folder / f"{name}.npz", **arrays)
      np.savez(
          folder / f"{name}.samples.npz", figures=np.array([], str), replicates=np.zeros((0, 9)),
          fingerprint=np.array("same"),
      )  # fmt: skip
    write_lines(output / stage, ("loss", "image_nll", "text_nll", "step_seconds"), 4)
  write_lines(output / "image_tokenizer.training", ("psnr", "perplexity", "usage"), 5)


@pytest.fixture(scope="module")
def config():
  path = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
  spec = importlib.util.spec_from_file_location("quickstart_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return config_lib.build(QuickstartConfig, module.get_config("phantom").to_dict())


@pytest.fixture
def output(tmp_path, studies_dir):
  fabricate(tmp_path / "run", studies_dir)
  return tmp_path / "run"


@pytest.fixture(scope="module")
def written(tmp_path_factory, studies_dir, config):
  """(output, its page, what was printed)."""
  output = tmp_path_factory.mktemp("written") / "run"
  fabricate(output, studies_dir)
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    write_quickstart_report(output, "phantom:50", 3, config, SECONDS)
  return output, (output / "report.html").read_text(), printed.getvalue()


class Page(html.parser.HTMLParser):
  """Text, pictures and addresses of a page; fails where tags do not match."""

  def __init__(self, source):
    super().__init__()
    self.open, self.text, self.images, self.addresses, self.tags = [], [], [], [], set()
    self.feed(source)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    attrs = dict(attrs)
    self.addresses += [v for k, v in attrs.items() if k in ("src", "href", "srcset", "data")]
    if tag == "img":
      self.images.append(attrs)
    if tag not in ("img", "meta"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_the_summary_is_flat_and_holds_every_figure(written):
  output, _, _ = written
  summary = json.loads((output / "summary.json").read_text())
  assert all(isinstance(number, (int, float)) for number in summary.values())
  for stage in ("stage1", "stage2"):
    for name in ("classification", "inpainting", "generation", "retrieval"):
      found = json.loads((output / f"evaluation/{stage}/{name}.json").read_text())
      for figure, number in found["values"].items():
        assert summary[f"{stage}/{name}/{figure}"] == number
  assert summary["seed"] == 3
  assert summary["seconds/stage 1"] == 100.0 and summary["seconds/total"] == 191.8
  assert summary["image_tokenizer/psnr"] == 0.2 and summary["stage2/train/loss"] == 0.25
  assert summary["stage2/generation/most_common_report/finding_f1_micro"] == 0.125


def test_the_page_is_one_file_with_everything_inside(written):
  _, source, _ = written
  found = Page(source)
  assert found.addresses and all(a.startswith("data:image/png;base64,") for a in found.addresses)
  assert "script" not in found.tags and "link" not in found.tags and "url(" not in source
  # Four drawings; five pictures of six studies under three masks; the ten studies of the split.
  assert len(found.images) == 4 + 3 * 6 * 5 + 10
  for image in found.images:
    assert image["alt"]
    Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).verify()
  text = " ".join(" ".join(found.text).split())
  assert text.count("Research only, not for clinical use.") == 2
  for expected in (
      "90% of the image hidden", "mean fill 11.2, mean image 14.0, tokenizer ceiling 24.0",
      "image to report, R@5", "most common report 0.125", "stage 2, step 80", "all steps 192",
      "Retrieval among 50 studies", "phantom: 50", "30 train, 10 val, 10 test",
      "evaluation:retrieval|stage:stage2",
  ):  # fmt: skip
    assert expected in text, expected
  assert "pass it on only" not in text


def test_reports_are_escaped_and_stand_beside_their_picture(written, studies_dir):
  _, source, _ = written
  rows = source.partition('<table class="studies">')[2].partition("</table>")[0].split("<tr>")[2:]
  table = studies.load_studies(studies_dir, "test")
  assert len(rows) == 10
  for row, study_id, pixels in zip(rows, table.study_ids, table.images, strict=True):
    text = "".join(Page(row.replace("</tr>", "")).text)
    assert f"No edema {study_id} <script>alert('{study_id}')</script> & \"quoted\"." in text
    assert f"Generated 0.0 {study_id}" in text and f"Generated 0.125 {study_id}" in text
    image = base64.b64decode(row.partition("base64,")[2].partition('"')[0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels)


def test_pictures_of_the_inpainting_stand_in_the_order_of_their_titles(written):
  output, source, _ = written
  images = Page(source).images
  titles = ["original", "tokenizer", "masked", "stage 1", "stage 2"]
  strip = [image for image in images if image["alt"] in titles]
  assert [image["alt"] for image in strip[:5]] == titles
  first, second = (
      np.load(output / f"evaluation/{stage}/inpainting.npz")["examples/random/mask=0.50"][0]
      for stage in ("stage1", "stage2")
  )
  expected = [first[0], first[3], first[1], first[2], second[2]]
  for image, pixels in zip(strip[:5], expected, strict=True):
    png = base64.b64decode(image["src"].partition(",")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)


def test_the_table_is_printed_and_the_better_stage_is_bold(written):
  _, source, printed = written
  lines = printed.splitlines()
  (line,) = [line for line in lines if line.startswith("F1 of the findings, micro")]
  expected = "0.600 0.725 most common report 0.125, most common with a finding 0.250"
  assert line.split()[5:] == expected.split()
  (line,) = [line for line in lines if line.startswith("report to image, median rank")]
  assert line.split()[5:] == ["9", "6", "chance", "25"]
  assert "3.2 minutes in all" in lines[-1]
  assert "<b>0.725</b>" in source and "<b>0.600</b>" not in source
  assert '<b>6</b>' in source  # A median rank is better when lower.
  assert "<b>0.500</b>" not in source  # A tie.


def test_the_ways_to_inpaint_are_compared(written):
  _, source, _ = written
  text = " ".join(Page(source).text)
  table = text.partition("validation pictures chose.")[2].partition("Generated reports")[0]
  assert "one pass, stage 1 one pass, stage 2 iterative, stage 1 iterative, stage 2" in " ".join(
      table.split()
  )
  assert table.split()[-6:] == ["bottom", "50%", "*17.0", "*17.1", "16.0", "16.1"]


def test_the_chosen_score_of_the_retrieval_has_a_star(written):
  _, source, _ = written
  text = " ".join(Page(source).text)
  table = text.partition("R@5 by score")[2].partition("Training")[0].split()
  assert table[-12:-6] == ["log", "likelihood", "*0.250", "*0.375", "0.250", "0.375"]
  assert table[-6:] == ["cosine,", "layer=2", "0.050", "0.050", "*0.050", "*0.050"]


def test_real_data_is_marked_and_its_path_is_not_shown(output, config):
  write_quickstart_report(output, "r2gen:/home/me/secret/annotation.json", 3, config, SECONDS)
  source = (output / "report.html").read_text()
  assert "pass it on only" in source and "secret" not in source
  assert "r2gen: annotation.json" in source


def test_without_a_scored_finding_the_rest_is_there(output, config):
  for stage in ("stage1", "stage2"):
    folder = output / "evaluation" / stage
    card = json.loads((folder / "classification.json").read_text())
    card["values"] = {"num_findings": 0}
    (folder / "classification.json").write_text(json.dumps(card))
    np.savez(folder / "classification.npz")
  write_quickstart_report(output, "phantom:50", 3, config, SECONDS)
  text = " ".join(Page((output / "report.html").read_text()).text)
  assert "No finding had enough cases" in text and "Inpainting" in text


@pytest.mark.parametrize(
    "name",
    [
        "evaluation/stage1/retrieval.json",
        "evaluation/stage2/inpainting.npz",
        "stage2/metrics.jsonl",
        "image_tokenizer.training/metrics.jsonl",
    ],
)
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_a_missing_or_damaged_file_is_named_and_nothing_is_written(output, config, name, damage):
  damage(output / name)
  with pytest.raises(UserError, match=f"{name} is missing or damaged"):
    write_quickstart_report(output, "phantom:50", 3, config, SECONDS)
  assert not (output / "summary.json").exists() and not (output / "report.html").exists()


def test_evaluations_of_other_studies_are_refused(output, config):
  path = output / "evaluation/stage2/generation.npz"
  arrays = dict(np.load(path))
  np.savez(path, **{**arrays, "study_ids": arrays["study_ids"][::-1]})
  with pytest.raises(UserError, match="evaluation is of other studies"):
    write_quickstart_report(output, "phantom:50", 3, config, SECONDS)
  assert not (output / "summary.json").exists() and not (output / "report.html").exists()
