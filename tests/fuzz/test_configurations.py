"""Damaged configurations and models: `bigain doctor` finds a problem or refuses."""

import json
import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from models import save_dit, save_stable_diffusion
from mutations import ODD_VALUES, answer, damaged, damaged_json, damaged_tree, forms, fuzzed, naming, put

from bigain.backbones import DiT, StableDiffusion

CONFIG = """\
seed: 0
model:
  class_path: bigain.modules.DiffusionClassifier
  init_args:
    backbone: {class_path: bigain.backbones.DiT, init_args: {model: shapes_dit}}
    trials: [1]
    keep: [1]
data: {class_path: bigain.data.ShapeTextures, init_args: {images: 2, batch_size: 2}}
compressor: {class_path: bigain.compressors.LGTM, init_args: {ratio: 0.5, where: {max_stride: 1}}}
trainer: {accelerator: cpu, precision: 32-true, devices: 1, logger: false}
"""


def damaged_yaml(text):
    trees = damaged_tree(yaml.safe_load(text)).filter(is_shallow).map(lambda tree: yaml.safe_dump(tree).encode())
    return damaged(text.encode()) | trees


def is_shallow(tree):
    """Whether yaml can write a tree."""
    try:
        return len(repr(tree)) < 9000
    except RecursionError:
        return False


@pytest.fixture
def folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    return tmp_path_factory


@fuzzed(15)
@given(damaged_yaml(CONFIG) | forms)
def test_configurations(folder, content):
    path = folder.mktemp("config") / "mine.yaml"
    put(path, content)
    answer("doctor", "--config", path, "--output", path.parent / "run")


@fuzzed(15)
@given(
    st.sampled_from(["seed", "output", "model.trials", "model.keep", "data.images", "data.subset", "data.per_class"])
    | st.sampled_from(
        ["compressor", "compressor.ratio", "trainer.devices", "trainer.callbacks", "model.backbone.model"]
    ),
    st.sampled_from(ODD_VALUES),
)
def test_options(folder, option, value):
    path = folder.mktemp("config") / "mine.yaml"
    path.write_text(CONFIG)
    answer("doctor", "--config", path, f"--{option}", value if isinstance(value, str) else json.dumps(value))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_dit(root / "dit", vae=False)
    save_stable_diffusion(root / "sd")
    return root


FILES = {
    "dit": ["model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"],
    "sd": ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"],
}
FILES["dit"] += ["transformer/diffusion_pytorch_model.safetensors"] * 2
FILES["sd"] += ["tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json", "text_encoder/model.safetensors"]
KINDS = {"dit": DiT, "sd": StableDiffusion}


@fuzzed(20)
@given(st.data())
def test_models(models, tmp_path_factory, data):
    name = data.draw(st.sampled_from(["dit", "sd"]))
    folder = tmp_path_factory.mktemp("model") / name
    shutil.copytree(models / name, folder)
    file = folder / data.draw(st.sampled_from(FILES[name]))
    content = file.read_bytes()
    put(file, data.draw((damaged_json(content) if file.suffix == ".json" else damaged(content)) | forms))
    backbone = KINDS[name](str(folder))
    with naming(folder):
        backbone.load()
        assert all(parameter.device.type == "cpu" for parameter in backbone.denoiser.parameters())
