"""The command: what it prints, as text and as JSON, and what it says of bad input."""

import json

import pytest

from chexmix_jax import plan
from chexmix_jax.errors import UserError
from chexmix_jax.planning import training


def run(capsys, *arguments):
  plan.main(list(arguments))
  return capsys.readouterr().out


def test_a_plan_of_tpus_is_printed(compiled_small, config_file, capsys, monkeypatch):
  monkeypatch.setattr(training, "compile_step", lambda *_: compiled_small)
  text = run(capsys, f"--config={config_file}", "--topology=v5e:2x2")
  lines = text.splitlines()
  assert lines[0] == "v5e:2x2: 4 devices in 1 slice(s), compiled"
  assert "mesh data=1 x fsdp=4 x tensor=1, accumulation 1, remat full" in lines[1]
  for word in ("parameters", "optimizer", "activations", "peak", "fits", "all-gather", "roofline",
               "MFU", "compiled in"):  # fmt: skip
    assert word in text


def test_gpus_need_no_compiler(config_file, capsys):
  result = json.loads(run(capsys, f"--config={config_file}", "--topology=H100:4", "--json"))
  assert result["memory"]["fits"] and result["time"]["mfu"] > 0
  assert "compile_seconds" not in result


def test_what_does_not_fit_comes_with_the_nearest_that_does(config_file, capsys):
  text = run(
      capsys, f"--config={config_file}", "--topology=RTX4090:1",
      "--config.data.batch_size=65536", "--config.model.remat=none",
  )  # fmt: skip
  assert "DOES NOT FIT" in text
  nearest = text.split("the nearest settings that fit:")[1]
  assert " fits, " in nearest and "65536 rows" in nearest


def test_a_search_is_ranked_by_speed(config_file, capsys):
  arguments = [f"--config={config_file}", "--topology=H100:4", "--search", "--compile=5"]
  results = json.loads(run(capsys, *arguments, "--json"))
  times = [result["time"]["step"] for result in results]
  assert len(times) == 5 and times == sorted(times)
  text = run(capsys, *arguments)
  assert len(text.splitlines()) == 6


def test_where_nothing_fits_it_is_said(config_file, capsys):
  text = run(
      capsys, f"--config={config_file}", "--topology=RTX4090:1", "--search",
      "--config.model.width=16384", "--config.model.num_layers=64", "--config.model.mlp_dim=65536",
  )  # fmt: skip
  assert "no settings fit" in text


@pytest.mark.parametrize("topology", ["H100:1", "v5e:2x2"])
def test_generation_is_planned(topology, config_file, capsys, request):
  if topology.startswith("v5e"):
    request.getfixturevalue("tpus")
  arguments = ["--generate", "--batch=4", "--prompt=128", "--new=128", "--json"]
  prefill, decode = json.loads(
      run(capsys, f"--config={config_file}", f"--topology={topology}", *arguments)
  )
  assert (prefill["program"], prefill["tokens"]) == ("prefill", 512)
  assert (decode["program"], decode["tokens"]) == ("decode", 4)
  cache = 2 * 3 * 4 * 256 * 256 * 2 / (4 if topology == "v5e:2x2" else 1)
  assert decode["memory"]["peak"] > cache
  assert decode["time"]["bound"] in ("memory", "links")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=H100:4"], "--config is missing"),
        (["--config=FILE", "--topology=H100"], "is not known; name KIND:SHAPE"),
        (["--config=FILE", "--topology=H100:4", "--batch=0"], "--batch=0 must be 1 or more"),
    ],
)
def test_bad_arguments_are_one_sentence(config_file, arguments, message):
  arguments = [argument.replace("FILE", str(config_file)) for argument in arguments]
  with pytest.raises(UserError, match=message):
    plan.main(arguments)
