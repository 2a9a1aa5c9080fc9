"""Metrics from outside the package, as CONTRIBUTING.md prints them, in a real run of each task."""

import json
import re
import sys
from pathlib import Path

import pytest

from bigain.commands.main import main

RECIPE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## A new metric\n")[2]
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--inspect", "0", "--output", "out"]


@pytest.fixture(autouse=True)
def my_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bigain"])
    blocks = re.findall(r"```python\n(.*?)```", RECIPE.partition("\n## ")[0], re.DOTALL)
    Path("my_metrics.py").write_text("\n".join(blocks), encoding="utf-8")
    yield
    sys.modules.pop("my_metrics", None)


def predict(config, *args):
    return main(["predict", "--config", config, *QUICK, *args])


def metrics():
    return json.loads(Path("out/results.json").read_text())["metrics"]


def test_a_classification_gets_its_metric_when_it_is_finished(capsys):
    run = ["demo_none.yaml", "--data.images", "2", "--model.trials", "[1]", "--model.keep", "[1]"]
    assert predict(*run) == 0
    before = metrics()
    assert predict(*run, "--model.metrics", "[my_metrics.Evaluations]") == 0
    estimate = {"value": 16.0, "low": 16.0, "high": 16.0, "n": 2, "unit": "", "better": None}
    assert metrics() == {**before, "mean_evaluations": estimate}
    assert "mean_evaluations  16.00 (95 % interval" in capsys.readouterr().out
    assert predict(*run, "--model.metrics", "[bigain.metrics.fidelity.Psnr]") == 2
    assert "psnr measures generated images; a classification has none" in capsys.readouterr().err


def test_a_generation_measures_its_metric_on_every_image():
    run = ["demo_none_generation.yaml", "--data.images", "4", "--model.steps", "1"]
    assert predict(*run, "--model.metrics", "[my_metrics.Contrast]") == 0
    lines = [json.loads(line) for line in Path("out/predictions/rank-0.jsonl").read_text().splitlines()]
    estimate = metrics()["mean_contrast"]
    assert estimate["value"] == pytest.approx(sum(line["mean_contrast"] for line in lines) / 4)
    assert estimate["low"] < estimate["value"] < estimate["high"]
