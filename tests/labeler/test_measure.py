import csv

import pytest

from chexmix_jax.errors import UserError
from chexmix_jax.labeler import measure


def test_finds_what_generated_studies_have():
  for scores in measure.score_phantoms(300).values():
    for name, score in scores.items():
      assert score.f1 >= 0.99 or score.true == score.found == 0, (name, score)


def test_prints_figures_and_keeps_texts_for_the_file_of_errors(tmp_path, capsys):
  reports, labels, errors = (tmp_path / f"{name}.csv" for name in ("reports", "labels", "errors"))
  reports.write_text("uid,findings\n21,Large xyzzy pneumothorax.\n22,Effusion.\n")
  columns = "Atelectasis,Cardiomegaly,Effusion,Mass,Nodule,Pneumonia,Pneumothorax,Consolidation"
  labels.write_text(
      f"uid,{columns},Edema,Pleural_Thickening\n21,{'0,' * 9}0\n22,0,0,1,{'0,' * 6}0\n"
  )
  arguments = ["--reports", str(reports), "--labels", str(labels), "--column", "findings"]
  measure.main([*arguments, "--errors", str(errors)])
  printed = capsys.readouterr().out
  assert "| Pleural Effusion | 1 | 1.000 | 1.000 | 1.000 | 1.000 | 0.000 |" in printed
  assert "xyzzy" not in printed
  with errors.open(newline="") as file:
    assert list(csv.reader(file)) == [
        ["uid", "finding", "kind", "text"],
        ["21", "Pneumothorax", "false positive", "large xyzzy pneumothorax"],
    ]


def test_wants_both_tables_or_phantoms(capsys):
  measure.main(["--phantoms=20"])
  assert "| Cardiomegaly | " in capsys.readouterr().out
  for arguments in ([], ["--reports=a.csv"]):
    with pytest.raises(UserError, match="Give both --reports and --labels, or --phantoms"):
      measure.main(arguments)
