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
CONFIGS = {"shapes_dit": "demo_none.yaml", "shapes_unet": "demo_unet_none.yaml"}


def test_weights_are_those_of_the_card():
    told = dict(re.findall(r"^\| `(\S+\.safetensors)` \| `([0-9a-f]{64})` \|$", CARD, re.MULTILINE))
    files = {path.relative_to(ASSETS).as_posix(): path for path in ASSETS.rglob("*.safetensors")}
    assert told == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.mark.parametrize("model", ["shapes_dit", pytest.param("shapes_unet", marks=pytest.mark.slow)])
def test_accuracy_is_that_of_the_card(model, tmp_path, monkeypatch):
    """Of the first 64 held-out images; processors round differently, and one image in 64 may fall to the other side."""
    monkeypatch.setattr(sys, "argv", ["bigain"])
    (row,) = re.findall(rf"^\| `{model}` \| 64 \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", CARD, re.MULTILINE)
    given = ["--data.images", "64", "--inspect", "0", "--output", str(tmp_path / "run")]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert bigain("predict", "--config", CONFIGS[model], *given, *quiet).returncode == 0
    metrics = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))["metrics"]
    found = [metrics[name]["value"] * 100 for name in ("top1", "shape", "fill")]
    assert found == pytest.approx([float(value) for value in row], abs=100 / 64 + 0.1)
