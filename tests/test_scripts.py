"""`scripts/train_shapes.py`: what it exports is a model of the shipped kind."""

import subprocess
import sys
from pathlib import Path

import pytest

from bigain.backbones import DiT

SCRIPT = Path(__file__).parents[1] / "scripts/train_shapes.py"


def parameters(model):
    backbone = DiT(str(model))
    backbone.load()
    return dict(backbone.denoiser.named_parameters())


@pytest.mark.slow
def test_training_exports_a_model(tmp_path):
    command = [sys.executable, SCRIPT, "dit", "--output", tmp_path, "--images", "32", "--batch-size", "8", "--coarsen"]
    found = subprocess.run([*map(str, command), "--accelerator", "cpu"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    trained, shipped = parameters(tmp_path / "model"), parameters("shapes_dit")
    assert all(one.isfinite().all() for one in trained.values())
    assert {name: one.shape for name, one in trained.items()} == {name: one.shape for name, one in shipped.items()}
