"""`pets_lgtm.yaml` as shipped, on photographs in torchvision's layout and an SD-style folder with a VAE."""

import json
from pathlib import Path

import pytest

from bigain.commands.main import main


def predict(stand_in, *args):
    quick = ["--model.trials", "[1,2]", "--model.keep", "[2,1]", "--data.image_size", "32", "--data.num_workers", "0"]
    quick += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--model.backbone.dtype", "float32"]
    quick += ["--model.backbone.model", str(stand_in), "--output", "out", "--data.batch_size", "1"]
    return main(["predict", "--config", "pets_lgtm.yaml", *quick, *args])


def records():
    return [json.loads(line) for line in Path("out/predictions/rank-0.jsonl").read_text().splitlines()]


def test_the_example_of_the_readme(stand_in, pets, capsys):
    assert predict(stand_in) == 0
    output = capsys.readouterr().out
    assert "Oxford-IIIT Pets, 3 images, 37 classes" in output
    assert "tokens 256 -> 128" in output
    assert "species" in output
    assert [record["label"] for record in records()] == [0, 1, 36]
    assert all(len(record["errors"]) == 37 + 2 for record in records())


def test_a_truncated_image_stops_the_run_and_finished_images_stay(stand_in, pets, capsys):
    broken = pets / "images" / "American_Bulldog_7.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    assert predict(stand_in) == 2
    assert "American_Bulldog_7.jpg" in capsys.readouterr().err
    assert [record["label"] for record in records()] == [0]


def test_a_truncated_image_in_a_worker_process_gives_the_same_message(stand_in, pets, capfd):
    broken = pets / "images" / "Abyssinian_7.jpg"
    broken.write_bytes(b"not an image")
    assert predict(stand_in, "--data.num_workers", "1") == 2
    messages = [line for line in capfd.readouterr().err.splitlines() if line.startswith("bigain: error:")]
    assert len(messages) == 1
    assert messages[0].startswith("bigain: error: image")


def test_missing_dataset_and_missing_image(stand_in, pets, capsys):
    assert predict(stand_in, "--data.root", "elsewhere") == 2
    assert "elsewhere/oxford-iiit-pet/annotations/test.txt" in capsys.readouterr().err
    (pets / "images" / "Abyssinian_7.jpg").unlink()
    assert predict(stand_in) == 2
    assert "Abyssinian_7" in capsys.readouterr().err
    (pets / "annotations/test.txt").write_text("# nothing\n")
    assert predict(stand_in) == 2
    assert "no image" in capsys.readouterr().err


def test_tokens_follow_the_image_size_and_the_trainers_precision_overrides_the_dtype_of_loading(stand_in, pets):
    """Neither is that of the trained model."""
    assert predict(stand_in, "--data.image_size", "24", "--model.backbone.dtype", "float16") == 0
    results = json.loads(Path("out/results.json").read_text())
    assert results["environment"]["network_dtype"] == "torch.float32"
    assert results["sites"][0]["tokens_in"] == 144
    assert results["flops"]["gflops_per_evaluation"] == pytest.approx(sum(results["flops"]["by_operation"].values()))
