"""Failures that the fuzz tests once found, one case per kind: an error that names the file."""

import json

import pytest
from models import save_stable_diffusion
from mutations import answer

from bigain.backbones import StableDiffusion
from bigain.errors import InputError


def refused(*args):
    status, message = answer(*args)
    assert status == 2
    return message


MODEL = """
model:
  class_path: bigain.modules.DiffusionClassifier
  init_args: {backbone: {class_path: bigain.backbones.DiT, init_args: {model: shapes_dit}}, trials: [1], keep: [1]}
data: {class_path: bigain.data.ShapeTextures, init_args: {images: 2}}
"""


@pytest.mark.parametrize("command", ["doctor", "predict"])
@pytest.mark.parametrize("text", ["seed: 2024-13-45", "[" * 5000], ids=["date", "deep"])
def test_yaml_that_cannot_be_read(tmp_path, command, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refused(command, "--config", path, "--output", tmp_path / "run")
    assert f"{path} is not valid YAML" in message


def test_an_invalid_trainer(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{MODEL}trainer: 3\n")
    message = refused("predict", "--config", path, "--output", tmp_path / "run")
    assert "trainer is 3; expected its settings by name" in message


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("unet/config.json", {"cross_attention_dim": [["x"]]}, "has cross_attention_dim"),
        ("unet/config.json", {"attention_head_dim": "x"}, "cannot load unet"),
        ("text_encoder/config.json", {"max_position_embeddings": "x"}, "but its text encoder x and"),
        ("unet/config.json", {"_class_name": {}, "architectures": 3}, "unet/config.json .* gives 3"),
        ("tokenizer/tokenizer.json", {"normalizer": 3}, "cannot load the tokenizer"),
    ],
)
def test_a_model_with_a_setting_of_a_different_type(tmp_path, file, change, words):
    path = save_stable_diffusion(tmp_path / "model") / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=words):
        StableDiffusion(str(tmp_path / "model")).load()
