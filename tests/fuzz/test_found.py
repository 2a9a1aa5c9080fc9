"""Failures that the fuzz tests once found, one case per kind: an error that names the file, nothing finished lost."""

import json

import pytest
from models import save_stable_diffusion
from mutations import answer
from synthetic_runs import classification

from bigain.backbones import StableDiffusion
from bigain.errors import InputError
from bigain.runs.logs import finished_images, read_records

CLASSIFY = ["predict", "--config", "demo_none.yaml", "--data.images", "2", "--model.trials", "[1]"]
CLASSIFY += ["--model.keep", "[1]", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
CLASSIFY += ["--trainer.logger", "false"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert answer(*CLASSIFY, "--output", folder)[0] == 0
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(finished, tmp_path):
    folder = tmp_path / "run"
    for name, content in finished.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refused(*args):
    status, message = answer(*args)
    assert status == 2
    return message


LOG = "predictions/rank-0.jsonl"


@pytest.mark.parametrize(("read", "byte"), [(finished_images, b"\xff"), (read_records, b"\xc3")])
def test_a_log_that_is_not_text(run, read, byte):
    file = run / LOG
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second.replace(b"test", byte))
    with pytest.raises(InputError, match=r"line 2: .*delete that line"):
        read(run / "predictions")


@pytest.mark.parametrize(
    ("name", "content"), [("identity.json is damaged", b"[]"), ("predictions/classes.json", b"\xff")]
)
def test_damaged_settings_and_class_names(run, name, content):
    (run / name.split()[0]).write_bytes(content)
    assert f"{run}/{name}" in refused(*CLASSIFY, "--output", run)


@pytest.mark.parametrize("name", ["results.json", "predictions/predictions.npz", LOG])
def test_a_folder_where_a_run_writes(run, finished, name):
    (run / name).unlink()
    (run / name).mkdir()
    assert str(run / name) in refused(*CLASSIFY, "--output", run)
    assert name == LOG or (run / LOG).read_bytes() == finished[LOG]


def test_links_in_a_circle_are_left_out_of_a_report(tmp_path):
    run = classification(tmp_path / "run", [True, False])
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    status, output = answer("report", run, loop, "--output", tmp_path / "report")
    assert status == 1
    assert f"left out: {loop}" in output


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


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (f"{{accelerator: cpu, devices: {10**30}}}", "cannot create a Trainer"),
        ("3", "trainer is 3; expected its settings by name"),
    ],
)
def test_an_invalid_trainer(tmp_path, trainer, words):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{MODEL}trainer: {trainer}\n")
    assert words in refused("predict", "--config", path, "--output", tmp_path / "run")


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
