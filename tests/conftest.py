"""Shared fixtures: a stand-in model in the format of SD 2.0, and a small tree of photographs.

Every test process and what it starts use one thread and the CPU: the tensors are small, so threads only wait for each
other, and results are the same where a GPU is visible. Triton interprets its kernels. With BIGAIN_GPU_TESTS=1 tests see
the GPU and kernels run there: `BIGAIN_GPU_TESTS=1 pytest -n 0 tests/gpu tests/tokens/test_kernels.py`.
"""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"
if "BIGAIN_GPU_TESTS" not in os.environ:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}

import pytest
from models import TOKENIZER, save_stable_diffusion
from PIL import Image
from transformers import CLIPTokenizer

from bigain.commands import predict
from bigain.commands.options import OPTIONS
from bigain.data.class_names.pets import BREEDS


@pytest.fixture(autouse=True)
def _pictures_where_asked_for(request, monkeypatch):
    """Runs inside a test draw pictures only if it is marked: drawing takes a second of each."""
    if request.node.get_closest_marker("pictures") is None:
        options = [(name, kind, 0 if name == "inspect" else value, text) for name, kind, value, text in OPTIONS]
        monkeypatch.setattr(predict, "OPTIONS", options)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty directory, with the command line of an installed program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bigain"])


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A random model in the folder format of Stable Diffusion 2.0, with a tokenizer of words."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=77)
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"), sample_size=16, tokenizer=tokenizer)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Three listed images, small and not square."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bigain"])
    root = tmp_path / "data" / "oxford-iiit-pet"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    lines = []
    for label in (0, 1, 36):
        name = BREEDS[label].replace(" ", "_") + "_7"
        lines.append(f"{name} {label + 1} 1 1")
        Image.effect_noise((50, 40), 60).convert("RGB").save(root / "images" / f"{name}.jpg")
    (root / "annotations/test.txt").write_text("\n".join(lines) + "\n")
    return root
