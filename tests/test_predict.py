"""The command line of predictions: outputs, errors, and going on after an interruption."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import chexmix_jax
from chexmix_jax import cli, predict
from chexmix_jax.data import images
from chexmix_jax.errors import UserError
from chexmix_jax.inference.inpaint import draw_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Five pictures, of which the second is damaged."""
  folder = tmp_path_factory.mktemp("pictures")
  rng = np.random.default_rng(0)
  for number, name in enumerate(("a.png", "b.png", "c.jpg", "d/e.png", "d/f.png")):
    (folder / name).parent.mkdir(exist_ok=True)
    raw = rng.integers(0, 256, (4, 4), np.uint8).repeat(6, 0).repeat(6, 1)
    Image.fromarray(raw.astype(np.uint16) * 200 if number == 3 else raw).save(folder / name)
  (folder / "b.png").write_bytes(b"this is text")
  return folder


GOOD = [0, 2, 3, 4]
NAMES = ["a.png", "b.png", "c.jpg", "d/e.png", "d/f.png"]


@pytest.fixture(scope="module")
def model(model_dir):
  return chexmix_jax.load(model_dir)


@pytest.fixture
def run(model_dir, folder, tmp_path):
  """Runs a command with batches of two; gives the output's path."""

  def run(command, name, *arguments, given=folder):
    output = tmp_path / name
    predict.main([
        command, f"--checkpoint={model_dir}", f"--input={given}", f"--output={output}",
        "--batch_size=2", *arguments,
    ])  # fmt: skip
    return output

  return run


def read_csv(path):
  with path.open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def good_paths(folder):
  return [folder / NAMES[i] for i in GOOD]


def test_reports_of_a_folder(run, folder, model, capfd):
  output = run("report", "out/reports.csv", "--mask-ratio=0.5", "--seed=3")
  rows = read_csv(output)
  assert [row["input"] for row in rows] == NAMES
  assert [row["image"] for row in rows] == [str(folder / name) for name in NAMES]
  expected = model.generate_reports(good_paths(folder), mask_ratio=0.5, seed=3)
  assert [rows[i]["report"] for i in GOOD] == expected
  assert "b.png cannot be read" in rows[1]["error"] and not rows[1]["report"]
  assert not any(rows[i]["error"] for i in GOOD)
  out, err = capfd.readouterr()
  assert "report of 4 picture(s); 1 could not be read" in out and "report:" in err
  assert not any(report[:12] in out + err for report in expected)
  assert sorted(p.name for p in output.parent.iterdir()) == [
      "reports.csv", "reports.csv.request.json",
  ]  # fmt: skip


def test_a_rexrank_json_comes_back_with_predictions(run, folder, model, tmp_path):
  cases = {
      "one": {"image_path": ["c.jpg", "a.png"], "key_image_path": "a.png", "context": "Age: 5"},
      "two": {"image_path": ["b.png"], "section_impression": float("nan")},
  }
  given = tmp_path / "cases.json"
  given.write_text(json.dumps(cases))
  output = run("report", "reports.csv", f"--image_root={folder}", given=given)
  found = json.loads(output.with_suffix(".json").read_text())
  (expected,) = model.generate_reports([folder / "a.png"])
  assert found["one"] == cases["one"] | {"model_prediction": expected}
  assert found["two"]["model_prediction"] == "" and "b.png" in found["two"]["error"]
  assert [row["input"] for row in read_csv(output)] == ["one", "two"]
  with pytest.raises(UserError, match=r"cases\.json is there already"):
    run("report", "cases.csv", f"--image_root={folder}", given=given)


def test_a_json_that_is_asked_for_has_all_fields(run, folder):
  output = run("report", "reports.json", given=folder / "a.png")
  ((name, case),) = json.loads(output.read_text()).items()
  (row,) = read_csv(output.with_suffix(".csv"))
  assert name == "a.png" and case == {
      "image_path": [str(folder / "a.png")], "key_image_path": str(folder / "a.png"),
      "context": "", "section_findings": "", "section_impression": "",
      "model_prediction": row["report"],
  }  # fmt: skip


def test_answers_to_the_questions_of_a_csv(run, folder, model, tmp_path):
  given = tmp_path / "list.csv"
  given.write_text("path,Q\na.png,is it?\nb.png,where?\na.png,where?\n")
  options = ("--documents=image (question) answer", "--columns=question=Q")
  output = run("report", "a.json", *options, f"--image_root={folder}", given=given)
  rows = read_csv(output.with_suffix(".csv"))
  assert list(rows[0]) == ["input", "image", "answer", "error", "question"]
  expected = model.generate_reports(
      [folder / "a.png"] * 2, documents="image (question) answer",
      prompts={"question": ["is it?", "where?"]},
  )  # fmt: skip
  assert [rows[i]["answer"] for i in (0, 2)] == expected and rows[1]["error"]
  assert [row["question"] for row in rows] == ["is it?", "where?", "where?"]
  cases = json.loads(output.read_text())
  assert [(name, case["question"], case["model_prediction"]) for name, case in cases.items()] == [
      ("a.png", "is it?", expected[0]), ("b.png", "where?", ""), ("a.png:2", "where?", expected[1])
  ]  # fmt: skip
  given.write_text("path,Q\na.png,why?\nb.png,where?\na.png,where?\n")
  with pytest.raises(UserError, match="with another input"):
    run("report", "a.json", *options, f"--image_root={folder}", given=given)


def test_embeddings_of_a_csv(run, folder, model, tmp_path):
  given = tmp_path / "list.csv"
  given.write_text("id,Path\n" + "".join(f"{i},{name}\n" for i, name in enumerate(NAMES)))
  output = run("embed", "e.npz", "--layers=2,0", f"--image_root={folder}", given=given)
  found = np.load(output, allow_pickle=False)
  assert found["inputs"].tolist() == NAMES and found["embeddings"].dtype == np.float32
  expected = model.embed(good_paths(folder), [2, 0])
  np.testing.assert_allclose(found["embeddings"][GOOD], expected, atol=1e-5)
  assert np.all(np.isnan(found["embeddings"][1]))
  assert [bool(error) for error in found["errors"]] == [i not in GOOD for i in range(5)]


def test_inpainted_pictures_show_original_masked_and_filled(run, folder, model):
  output = run("inpaint", "p", "--mask=top", "--mask-ratio=0.5", "--method=iterative")
  rows = read_csv(output / "pictures.csv")
  assert [row["picture"] for row in rows] == [
      "000000_a.png", "", "000002_c.png", "000003_e.png", "000004_f.png",
  ]  # fmt: skip
  mask = draw_mask("top", 0.5, (4, 4), 0, 0).reshape(4, 4)
  filled = model.inpaint(good_paths(folder), mask, "iterative")
  for row, number, expected in zip([rows[i] for i in GOOD], GOOD, filled, strict=True):
    found = np.asarray(Image.open(output / row["picture"]))
    original = images.grey(images.read_image(folder / NAMES[number], 16))
    np.testing.assert_array_equal(found[:, :16], original)
    assert np.all(found[:8, 20:36] == 128)
    np.testing.assert_array_equal(found[8:, 20:36], original[8:])
    np.testing.assert_array_equal(found[:, 40:], expected[..., 0])


def test_surprise_is_drawn_for_every_picture(run):
  output = run("surprise", "s", "--radius=2")
  pictures = [row["picture"] for row in read_csv(output / "pictures.csv")]
  assert [bool(name) for name in pictures] == [i in GOOD for i in range(5)]
  assert {p.name for p in output.iterdir()} == {*filter(None, pictures), "pictures.csv"}
  assert np.asarray(Image.open(output / pictures[0])).shape[2] >= 3


def test_it_goes_on_where_it_was_stopped_and_does_nothing_twice(run, monkeypatch, capsys):
  expected = run("report", "whole.csv").read_text()
  seen = []
  generate_reports = predict.Model.generate_reports

  def stop_at_the_second(self, pixels, *rest):
    seen.append(len(pixels))
    if len(seen) == 2:
      raise KeyboardInterrupt
    return generate_reports(self, pixels, *rest)

  monkeypatch.setattr(predict.Model, "generate_reports", stop_at_the_second)
  with pytest.raises(SystemExit) as stop:
    cli.entry(lambda: run("report", "a.csv"))
  assert stop.value.code == 130 and "goes on from here" in capsys.readouterr().err
  with pytest.raises(UserError, match="with another mask_ratio"):
    run("report", "a.csv", "--mask-ratio=0.5")
  output = run("report", "a.csv", "--batch_size=3")
  assert output.read_text() == expected and seen == [1, 2, 3]
  run("report", "a.csv")
  assert "finished before" in capsys.readouterr().out and seen == [1, 2, 3]
  with pytest.raises(UserError, match="with another input"):
    run("report", "a.csv", "--image_column=image", given=output.parent / "whole.csv")


@pytest.mark.parametrize(
    ("command", "name", "arguments", "message"),
    [
        ("report", "a.txt", (), r"a\.txt must end with \.csv or \.json"),
        ("report", "a.csv", ("--documents=image",), "--documents: 'image' must be one form"),
        ("report", "a.csv", ("--documents=image question answer",), "holds pictures without texts"),
        ("report", "a.csv", ("--columns=question=Q",), "--columns names 'question', which is no"),
        ("report", "a.csv", ("--documents=frontal lateral report",), "must show one picture"),
        ("embed", "a.csv", (), r"a\.csv must end with \.npz"),
        ("report", "a.csv", ("--mask-ratio=2",), r"mask_ratio=2\.0"),
        ("report", "a.csv", ("--seed=-1",), r"--seed=-1"),
        ("inpaint", "a", ("--mask-ratio=0.01",), "hides none or all"),
        ("surprise", "a", ("--radius=0",), "radius=0"),
        ("embed", "a.npz", ("--layers=a",), "--layers=a must be numbers"),
        ("embed", "a.npz", ("--layers=9",), "layers holds 9"),
        ("embed", "a.npz", ("--batch_size=0",), "--batch_size=0"),
        ("embed", "a.npz", ("--step=3",), "no checkpoint of step 3"),
        ("embed", "a.npz", ("--image_tokenizer=none",), "none is not an image tokenizer"),
    ],
)
def test_what_makes_no_sense_is_named_and_leaves_nothing(
    run, tmp_path, command, name, arguments, message
):
  with pytest.raises(UserError, match=message):
    run(command, name, *arguments)
  assert list(tmp_path.iterdir()) == []


def test_pictures_that_all_fail_are_all_reported(run, folder):
  found = np.load(run("embed", "e.npz", given=folder / "b.png"))
  assert found["errors"][0] and len(found["embeddings"]) == 1
  assert read_csv(run("surprise", "s", given=folder / "b.png") / "pictures.csv")[0]["error"]
