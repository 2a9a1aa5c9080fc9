"""`bigain doctor`: a complete set-up passes, and every broken one is reported with what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from bigain.backbones import DiT
from bigain.commands.checks import _dataset as dataset_checks
from bigain.commands.main import main
from bigain.data import ImageFolder
from bigain.errors import InputError
from bigain.modules import DiffusionClassifier


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


def test_a_complete_set_up_passes_and_nothing_is_written(examine, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    status, findings, told = examine("--data.limit", "3")
    assert status == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert {state for state, _ in findings.values()} == {"ok"}
    assert told.endswith("everything is here\n")
    for name in ("settings", "unet", "vae", "text_encoder"):
        assert f"weights/{name}" in findings
    assert "tokens 256 -> 128" in findings["compressor/LGTM"][1]
    assert "3 images of the official 3,669" in findings["data"][1]


def test_a_partial_dataset_is_a_warning(examine, caplog):
    status, findings, told = examine()
    assert status == 0
    assert findings["data"] == ("warning", "Oxford-IIIT Pets: 3 images of 3,669")
    assert told.endswith("1 warning\n")
    assert not caplog.records


@pytest.mark.parametrize(
    ("lost", "expected", "words"),
    [
        ("unet/diffusion_pytorch_model.safetensors", ["weights/unet"], "fix: copy unet/diffusion_pytorch_model."),
        ("text_encoder", ["weights/settings", "weights/text_encoder"], ""),
        ("", ["weights"], ""),
    ],
)
def test_incomplete_models(examine, copied, lost, expected, words):
    path = copied / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    status, findings, told = examine(model=copied)
    assert status == 1
    assert problems(findings) == expected
    assert words in told


@pytest.mark.parametrize(
    ("args", "problem", "words"),
    [
        (["--data.root", "elsewhere"], "data", "elsewhere"),
        (["--compressor", "IEKVD", "--compressor.factor", "50"], "compressor/IEKVD", "factor 50"),
        (
            ["--compressor", "MosaicDiff", "--compressor.masks", "m"],
            "compressor/MosaicDiff",
            "there are no masks at m;",
        ),
        # The embedded DiT has 16 classes, and breeds are not among them.
        (
            ["--model.backbone.class_path", "bigain.backbones.DiT", "--model.backbone.model", "shapes_dit"],
            "fit",
            "the dataset 37",
        ),
        (["--trainer.accelerator", "tpu"], "device", "--trainer.accelerator auto"),
        (["--output", "mine"], "run", "not a run directory"),
        (["--output", "run"], "run", "--overwrite true"),
    ],
)
def test_settings_that_cannot_work(examine, args, problem, words):
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("")
    Path("run/predictions").mkdir(parents=True)
    Path("run/identity.json").write_text(json.dumps({"seed": 7}))
    Path("run/predictions/rank-0.jsonl").write_text("{}\n")
    status, findings, told = examine(*args)
    assert status == 1
    assert problems(findings) == [problem]
    assert words in told


def test_a_folder_of_a_single_class_with_stray_files(tmp_path):
    for name in ("cat/1.png", "cat/more/2.png", "__MACOSX/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    checks = dataset_checks(DiffusionClassifier(DiT("shapes_dit")), ImageFolder(str(tmp_path)))
    assert next(checks).message == "ImageFolder: 1 image, 1 class"
    note = next(checks)
    assert (note.status, note.message.partition(";")[0]) == ("warning", f"{tmp_path}: ignored __MACOSX, cat/more/")
    with pytest.raises(InputError, match="at least two classes, but cat is the only one"):
        next(checks)


def test_images_that_cannot_be_read_and_greyscale_images(examine, pets):
    path = pets / "images" / "Abyssinian_7.jpg"
    Image.new("L", (20, 30)).save(path)
    assert examine()[0] == 0
    path.write_bytes(b"no image")
    status, findings, _ = examine()
    assert status == 1
    assert problems(findings) == ["data/images"]
    assert "Abyssinian_7.jpg" in findings["data/images"][1]


@pytest.mark.parametrize(
    ("precision", "has_bfloat16", "expected"),
    [
        ("16-true", True, "warning"),
        ("bf16-true", False, "warning"),
        ("bf16-true", True, "ok"),
        ("32-true", False, "ok"),
    ],
)
def test_a_precision_that_a_processor_emulates_is_a_warning(examine, monkeypatch, precision, has_bfloat16, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bfloat16)
    status, findings, _ = examine("--trainer.precision", precision)
    assert (status, findings["device"][0]) == (0, expected)


def test_a_full_disk(examine, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    status, findings, _ = examine()
    assert status == 1
    assert problems(findings) == ["disk"]
