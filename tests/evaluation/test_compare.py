"""The page that compares results, over results written by hand."""

import io
import json

import numpy as np
import pytest

from chexmix_jax import evaluate
from chexmix_jax.errors import UserError
from chexmix_jax.evaluation import sections


def write_results(folder, auroc, fingerprint="same"):
  folder.mkdir()
  values = {"auroc/mask=0.00": auroc, "random_init/auroc/mask=0.00": 0.5, "num_test": 30}
  found = {
      "values": values, "intervals": {"auroc/mask=0.00": [auroc - 0.1, auroc + 0.1]},
      "signature": f"evaluation:classification|auroc:{auroc}", "checkpoint_step": 7,
  }  # fmt: skip
  (folder / "classification.json").write_text(json.dumps(found))
  arrays = {
      "auroc": np.full((1, 2, 3), auroc), "layer": np.array([1]), "mask_ratios": np.zeros(1),
      "findings": np.array(["Edema"]), "random_init/auroc": np.full((1, 2, 3), 0.5),
      "random_init/layer": np.array([0]),
  }  # fmt: skip
  samples = {
      "figures": np.array(["auroc/mask=0.00"]),
      "replicates": np.linspace(auroc - 0.1, auroc + 0.1, 100)[None],
      "fingerprint": np.array(fingerprint),
  }
  for suffix, content in (("npz", arrays), ("samples.npz", samples)):
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    (folder / f"classification.{suffix}").write_bytes(buffer.getvalue())
  return folder


def test_checkpoints_stand_side_by_side_with_their_difference(tmp_path):
  first = write_results(tmp_path / "first", 0.7)
  second = write_results(tmp_path / "second", 0.8)
  output = tmp_path / "page.html"
  evaluate.main(["compare", str(first), str(second), "--names=old,new", f"--output={output}"])
  text = output.read_text()
  assert "<td class=\"number\">0.700 [0.600, 0.800]</td>" in text
  assert "<b>0.800 [0.700, 0.900]</b>" in text
  assert "[+0.100, +0.100], p = 0.020" in text and "new – old" in text
  assert "evaluation:classification|auroc:0.8" in text and "Research only" in text
  assert "Generated reports" not in text and "http" not in text.replace("http-equiv", "")


def test_other_samples_are_no_pairs(tmp_path):
  mend = "mend."
  one = sections.read_found(write_results(tmp_path / "a", 0.7), mend)
  other = sections.read_found(write_results(tmp_path / "b", 0.8, "another"), mend)
  assert sections.difference(one, other, "classification", "auroc/mask=0.00") is None
  found = sections.difference(one, one, "classification", "auroc/mask=0.00")
  assert found is not None and found.p == 1.0
  assert sections.difference(one, one, "retrieval", "x") is None


def test_what_cannot_be_compared_is_named(tmp_path):
  folder = write_results(tmp_path / "a", 0.7)
  with pytest.raises(UserError, match="2 results and 1 different names"):
    evaluate.main(["compare", str(folder), str(folder), f"--output={tmp_path / 'page'}"])
  with pytest.raises(UserError, match="nothing has no results of evaluate"):
    evaluate.main(["compare", str(tmp_path / "nothing"), f"--output={tmp_path / 'page'}"])
  (folder / "classification.npz").write_bytes(b"x")
  with pytest.raises(UserError, match=r"classification\.npz is missing or damaged; name folders"):
    evaluate.main(["compare", str(folder), f"--output={tmp_path / 'page'}"])
