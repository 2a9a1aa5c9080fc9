"""A metric from outside the package, in a real run of each task."""

import json
import sys
from pathlib import Path

import pytest

from bigain.commands.main import main

QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--inspect", "0", "--output", "out"]
CLASSIFICATION = """
from bigain.metrics import Metric, mean_estimate

class WinningError(Metric):
    name = "winning_error"

    def estimates(self, records, space):
        pairs = [(record.prediction, zip(record.classes, record.errors)) for record in records]
        return {self.name: mean_estimate([min(e for c, e in pair if c == best) for best, pair in pairs])}
"""
GENERATION = """
from bigain.metrics import ImageMetric

class Contrast(ImageMetric):
    name = "contrast"

    def measure(self, images):
        return images.pixels.float().std(dim=(1, 2, 3))
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bigain"])
    yield
    sys.modules.pop("my_metrics", None)


def results():
    return json.loads(Path("out/results.json").read_text())


def test_a_metric_of_a_classification_is_added_to_a_finished_run(capsys):
    """It enters no identity, so a finished run is only evaluated again."""
    Path("my_metrics.py").write_text(CLASSIFICATION)
    run = ["predict", "--config", "demo_none.yaml", *QUICK, "--data.images", "2", "--model.trials", "[1]"]
    assert main([*run, "--model.keep", "[1]"]) == 0
    before = results()["metrics"]
    assert main([*run, "--model.keep", "[1]", "--model.metrics", "[my_metrics.WinningError]"]) == 0
    metrics = results()["metrics"]
    assert metrics.pop("winning_error")["n"] == 2
    assert metrics == before
    assert "winning_error" in capsys.readouterr().out
    assert main([*run, "--model.keep", "[1]", "--model.metrics", "[bigain.metrics.fidelity.Psnr]"]) == 2
    assert "psnr measures generated images; a classification has none" in capsys.readouterr().err


def test_a_metric_of_a_generation_is_measured_while_images_are_generated():
    Path("my_metrics.py").write_text(GENERATION)
    run = ["predict", "--config", "demo_none_generation.yaml", *QUICK, "--data.images", "4", "--model.steps", "1"]
    assert main([*run, "--model.metrics", "[my_metrics.Contrast]"]) == 0
    estimate = results()["metrics"]["contrast"]
    lines = [json.loads(line) for line in Path("out/predictions/rank-0.jsonl").read_text().splitlines()]
    assert estimate["value"] == pytest.approx(sum(line["contrast"] for line in lines) / 4)
    assert estimate["low"] < estimate["value"] < estimate["high"]
