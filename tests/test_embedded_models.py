"""The embedded models are those of their card, `bigain/assets/README.md`, and do what it says."""

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
from program import bigain

import bigain as package

ASSETS = Path(package.__file__).parent / "assets"
CARD = (ASSETS / "README.md").read_text(encoding="utf-8")
CONFIGS = {"shapes_dit": "demo_none.yaml", "shapes_unet": "demo_unet_none.yaml", "shapes_flow": "demo_flow_none.yaml"}


def test_weights_are_those_of_the_card():
    told = dict(re.findall(r"^\| `(\S+\.safetensors)` \| `([0-9a-f]{64})` \|$", CARD, re.MULTILINE))
    files = {path.relative_to(ASSETS).as_posix(): path for path in ASSETS.rglob("*.safetensors")}
    assert told == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def metrics_of(model, images, tmp_path, *options):
    command = ["--config", CONFIGS[model], "--data.images", str(images), "--inspect", "0", *options]
    quiet = ["--output", str(tmp_path), "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert bigain("predict", *command, *quiet).returncode == 0
    return json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["metrics"]


@pytest.mark.parametrize(
    "model", ["shapes_dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shapes_unet", "shapes_flow"))]
)
def test_embedded_models_classify(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bigain"])
    assert metrics_of(model, 4, tmp_path, "--model.trials", "[5]", "--model.keep", "[1]")["top1"]["value"] >= 3 / 4


@pytest.mark.slow
@pytest.mark.parametrize("model", CONFIGS)
def test_accuracy_is_that_of_the_card(model, tmp_path, monkeypatch):
    """Of the first 64 held-out images; processors round differently, and one image in 64 may fall to the other side."""
    monkeypatch.setattr(sys, "argv", ["bigain"])
    (row,) = re.findall(rf"^\| `{model}` \| 64 \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", CARD, re.MULTILINE)
    metrics = metrics_of(model, 64, tmp_path)
    accuracies = [metrics[name]["value"] * 100 for name in ("top1", "shape", "fill")]
    assert accuracies == pytest.approx([float(value) for value in row], abs=100 / 64 + 0.1)
