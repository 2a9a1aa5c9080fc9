"""`bigain doctor`: a healthy set-up passes, and every broken one is told from it with what to do."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from bigain.commands.main import main


@pytest.fixture
def examine(stand_in, pets, capsys):
    """Runs doctor on `pets_lgtm.yaml` with the stand-in; returns the exit status and the findings by name."""

    def run(*args, model=stand_in):
        quick = ["--data.image_size", "32", "--trainer.precision", "32-true", "--model.backbone.dtype", "float32"]
        quick += ["--model.backbone.model", str(model), "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
        status = main(["doctor", "--config", "pets_lgtm.yaml", *quick, *args])
        told = capsys.readouterr().out
        lines = [
            line.split(maxsplit=2) for line in told.splitlines() if line.split()[0] in ("ok", "warning", "problem")
        ]
        return status, {name: (state, message) for state, name, message in lines}, told

    return run


@pytest.fixture
def copied(stand_in, tmp_path):
    """A copy of the stand-in to break."""
    return shutil.copytree(stand_in, tmp_path / "model")


def problems(findings):
    return [name for name, (state, _) in findings.items() if state == "problem"]


def test_a_healthy_set_up(examine):
    status, findings, told = examine("--data.limit", "3")
    assert status == 0
    assert {state for state, _ in findings.values()} == {"ok"}
    assert told.endswith("everything is here\n")
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert f"weights/{name}" in findings
    assert "tokens 256 -> 128" in findings["compressor/LGTM"][1]
    assert "3 images of the official 3,669" in findings["data"][1]


def test_nothing_is_written(examine, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    examine()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_partial_dataset_is_a_warning(examine, caplog):
    status, findings, told = examine()
    assert status == 0
    assert findings["data"] == ("warning", "Oxford-IIIT Pets: 3 images of 3,669")
    assert told.endswith("1 warning\n")
    assert not caplog.records


def test_missing_weights(examine, copied):
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    status, findings, told = examine(model=copied)
    assert status == 1
    assert problems(findings) == ["weights/unet"]
    assert "fix: copy unet/diffusion_pytorch_model.safetensors into" in told


def test_truncated_weights(examine, copied):
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    status, findings, _ = examine(model=copied)
    assert status == 1
    assert problems(findings) == ["weights/vae"]


def test_a_missing_component(examine, copied):
    shutil.rmtree(copied / "text_encoder")
    status, findings, _ = examine(model=copied)
    assert status == 1
    assert problems(findings) == ["weights/text_encoder"]


def test_a_model_that_does_not_exist(examine):
    status, findings, _ = examine(model="no_such_model")
    assert status == 1
    assert problems(findings) == ["weights"]
    assert "network" not in findings


def test_a_missing_dataset(examine, tmp_path):
    status, findings, _ = examine("--data.root", str(tmp_path / "elsewhere"))
    assert status == 1
    assert problems(findings) == ["data"]
    assert str(tmp_path / "elsewhere") in findings["data"][1]


def test_an_image_that_cannot_be_read(examine, pets):
    (pets / "images" / "Abyssinian_7.jpg").write_bytes(b"no image")
    status, findings, _ = examine()
    assert status == 1
    assert problems(findings) == ["data/images"]
    assert "Abyssinian_7.jpg" in findings["data/images"][1]


def test_a_compressor_that_does_not_fit(examine):
    status, findings, _ = examine("--compressor", "IEKVD", "--compressor.factor", "50")
    assert status == 1
    assert problems(findings) == ["compressor/IEKVD"]
    assert "factor 50" in findings["compressor/IEKVD"][1]


def test_classes_the_model_does_not_have(examine):
    """The embedded DiT has 16 classes, none of which is a breed."""
    model = ["--model.backbone.class_path", "bigain.backbones.DiT"]
    status, findings, _ = examine(*model, model="shapes_dit")
    assert status == 1
    assert problems(findings) == ["network"]
    assert "37 different ones" in findings["network"][1]


def test_a_device_that_is_not_there(examine):
    status, findings, _ = examine("--trainer.accelerator", "tpu")
    assert status == 1
    assert problems(findings) == ["device"]


def test_half_precision_on_a_processor_is_a_warning(examine):
    status, findings, _ = examine("--trainer.precision", "16-true")
    assert status == 0
    assert findings["device"][0] == "warning"


def test_a_directory_that_is_not_a_run(examine, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    status, findings, _ = examine("--output", "mine")
    assert status == 1
    assert problems(findings) == ["run"]


def test_a_run_of_another_configuration(examine, tmp_path):
    (tmp_path / "out" / "predictions").mkdir(parents=True)
    (tmp_path / "out" / "identity.json").write_text(json.dumps({"seed": 7}))
    (tmp_path / "out" / "predictions" / "rank-0.jsonl").write_text("{}\n")
    status, findings, told = examine("--output", "out")
    assert status == 1
    assert problems(findings) == ["run"]
    assert "--overwrite true" in told


def test_a_disk_that_is_full(examine, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    status, findings, _ = examine()
    assert status == 1
    assert problems(findings) == ["disk"]


def test_a_configuration_that_is_wrong_is_bad_input(examine):
    assert examine("--compressor.ratioo", "0.5")[0] == 2


def test_greyscale_images_are_fine(examine, pets):
    Image.new("L", (20, 30)).save(Path(pets) / "images" / "Abyssinian_7.jpg")
    assert examine()[0] == 0
