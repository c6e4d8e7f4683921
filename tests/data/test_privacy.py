"""Nothing of a report's text or of a patient's id is printed or logged, at any level."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from chexmix_jax import prepare, tokenize
from chexmix_jax.errors import UserError

REPORT, PATIENT, STUDY = "Confidential wording", "patient-4711", "study-0815"


@pytest.fixture
def annotation(tmp_path):
  """Good and bad rows; every report, patient and study of them is a secret."""
  rows = []
  for i in range(8):
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20), np.uint8)).save(
        tmp_path / f"{i}.png"
    )
    rows.append({
        "id": f"{STUDY}-{i}", "subject_id": f"{PATIENT}-{i}", "image_path": [f"{i}.png"],
        "report": f"{REPORT} number {i}.",
    })  # fmt: skip
  (tmp_path / "5.png").write_text("no picture")
  rows[6]["report"] = f"{REPORT} " * 2000
  rows[7] |= {"id": rows[0]["id"]}
  (tmp_path / "annotation.json").write_text(json.dumps({"train": rows}))
  return tmp_path / "annotation.json"


@pytest.mark.parametrize("max_refused", [0.01, 0.9])
def test_prepare_and_tokenize_say_nothing_of_patients(
    annotation, tmp_path, max_refused, image_tokenizer, bpe_dir, monkeypatch, capfd, caplog
):
  caplog.set_level(logging.DEBUG)
  said = []
  try:
    prepare.main([
        "--source=r2gen", f"--data_dir={annotation}", "--size=16", "--workers=1",
        f"--max_refused={max_refused}", f"--output={tmp_path / 'studies'}",
    ])  # fmt: skip
    monkeypatch.setattr(tokenize.ImageTokenizer, "load", lambda path: image_tokenizer)
    tokenize.main([
        f"--studies={tmp_path / 'studies'}", "--image_tokenizer=any",
        f"--text_tokenizer={bpe_dir}", f"--output={tmp_path / 'tokens'}",
    ])  # fmt: skip
  except UserError as error:
    said.append(str(error))
  assert bool(said) == (max_refused < 0.5)
  out = capfd.readouterr()
  said += [out.out, out.err, caplog.text]
  (quarantine,) = [*tmp_path.glob("studies/quarantine.jsonl"),
                   *tmp_path.glob(".studies.partial/quarantine.jsonl")]  # fmt: skip
  said.append(quarantine.read_text())
  assert "damaged image" in said[-1] or "duplicate id" in said[-1]
  assert not any(secret in text for text in said for secret in (REPORT, PATIENT, STUDY))
