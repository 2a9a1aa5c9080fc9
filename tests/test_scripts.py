"""`scripts/train_shapes.py`: what it exports is a model of the shipped kind, and its curve is of all sessions."""

import importlib
import os
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


def test_the_curve_is_of_all_sessions(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = importlib.import_module("train_shapes")
    script.draw_curve(tmp_path, 64)
    assert not (tmp_path / "curve.png").exists()
    # The second session repeats what came after the last checkpoint.
    for number, rows in enumerate(("49,0.5\n99,0.4\n149,0.35\n", "149,0.3\n199,0.2\n")):
        file = tmp_path / f"sessions/version_{number}/metrics.csv"
        file.parent.mkdir(parents=True)
        file.write_text(f"step,loss\n{rows}")
        os.utime(file, (number, number))
    assert script.read_losses(tmp_path) == {49: 0.5, 99: 0.4, 149: 0.3, 199: 0.2}
    script.draw_curve(tmp_path, 64)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_exports_a_model(tmp_path):
    command = [sys.executable, SCRIPT, "dit", "--output", tmp_path, "--images", "32", "--batch-size", "8", "--coarsen"]
    ended = subprocess.run([*map(str, command), "--accelerator", "cpu"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    trained, shipped = parameters(tmp_path / "model"), parameters("shapes_dit")
    assert all(one.isfinite().all() for one in trained.values())
    assert {name: one.shape for name, one in trained.items()} == {name: one.shape for name, one in shipped.items()}
