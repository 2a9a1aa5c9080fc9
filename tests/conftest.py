"""Shared fixtures: a stand-in model in the format of SD 2.0, and a small tree of photographs.

Every test process and what it starts use one thread and the CPU: the tensors are small, so threads only wait for each
other, and results are the same where a GPU is visible. Triton interprets its kernels. With BIGAIN_GPU_TESTS=1 tests see
the GPU and kernels run there: `BIGAIN_GPU_TESTS=1 pytest -n 0 tests/gpu tests/tokens/test_kernels.py`.
"""

import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
if "BIGAIN_GPU_TESTS" not in os.environ:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

import bigain
from bigain.commands import predict
from bigain.commands.options import OPTIONS
from bigain.data.class_names.pets import BREEDS

EMBEDDED = Path(bigain.__file__).parent / "assets" / "shapes_unet"


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
    """A random model in the folder format of Stable Diffusion 2.0: U-Net, VAE, text encoder, tokenizer, scheduler."""
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=(2, 2),
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    ).save_pretrained(folder / "vae")
    tokenizer = json.loads((EMBEDDED / "tokenizer/vocab.json").read_text())
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    (folder / "tokenizer").mkdir()
    for file in (EMBEDDED / "tokenizer").iterdir():
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 77}))
    index = json.loads((EMBEDDED / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


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
