"""`bigain score`: distances and fidelity of images that are already made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import save_clip, save_dino
from PIL import Image
from program import message_of, program_in
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from bigain.commands.main import main
from bigain.commands.predict import missing_parts
from bigain.metrics import Inception, inception
from bigain.metrics.inception import VARIABLE
from bigain.metrics.reference import Moments, ReferenceStatistics

QUICK = ["--model.steps", "1", "--model.guidance", "1", "--trainer.accelerator", "cpu", "--data.images", "4"]
QUICK += ["--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
QUICK += ["--inspect", "0"]
INCEPTION = ["--model.extractor", "Inception", "--model.reference", "real.npz"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs to score: `scored`, `plain` without compression, `unscored` whose Inception weights were not there."""
    root = tmp_path_factory.mktemp("runs")
    with program_in(root) as patch:
        patch.setenv("TORCH_HOME", str(root / "torch"))
        patch.delenv(VARIABLE, raising=False)
        patch.setattr(Inception, "dimension", 16)
        real = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
        ReferenceStatistics(Moments.of([real]), "pytorch-fid").save("real.npz")
        assert predict("demo_lgtm_generation.yaml", "scored", "--model.items_per_forward", "2") == 0
        assert predict("demo_none_generation.yaml", "plain") == 0
        assert predict("demo_lgtm_generation.yaml", "unscored", *INCEPTION) == 1
        assert predict("demo_lgtm_generation.yaml", "featured", "--model.images", "none") == 0
    return root


@pytest.fixture(autouse=True)
def copied(made, tmp_path, monkeypatch):
    """The runs, to be changed."""
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(VARIABLE, raising=False)


def predict(config, output, *args):
    return main(["predict", "--config", config, *QUICK, "--output", output, *args])


def results(run):
    return json.loads(Path(run, "results.json").read_text())


def refused(capsys, *args):
    return message_of(capsys, lambda: main(["score", *args]))


def few_layers():
    """In place of Inception's, without weights."""
    with torch.device("meta"):
        return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 32, 32), torch.nn.AdaptiveAvgPool2d(1))


def test_a_run_without_weights_keeps_its_images_and_gets_its_distance_later(capsys, monkeypatch):
    monkeypatch.setattr(inception, "pooling_layers", few_layers)
    monkeypatch.setattr(Inception, "dimension", 16)
    stored = results("unscored")
    assert stored["metrics"] == {}
    assert stored["distance_missing"].startswith("the Inception weights weights-inception-2015-12-05-6726825d.pth")
    assert len(list(Path("unscored/samples").rglob("*.png"))) == 4
    assert "looked for" in refused(capsys, "unscored")
    assert results("unscored") == stored
    weights = few_layers().to_empty(device="cpu").state_dict()
    save_file({name: torch.full_like(tensor, 0.01) for name, tensor in weights.items()}, "mine.safetensors")
    assert main(["score", "unscored", "--weights", "mine.safetensors"]) == 0
    Path("mine.safetensors").unlink()
    assert "frechet[pytorch-fid]" in capsys.readouterr().out
    assert results("unscored")["distance_missing"] is None
    assert results("unscored")["inception_score_missing"] == "4 images: it takes 20"
    # No one asked for the score, so nothing is missing.
    assert missing_parts(results("unscored")) is None
    estimate = results("unscored")["metrics"]["frechet[pytorch-fid]"]
    assert estimate["value"] > 0
    assert estimate["n"] == 4


def test_scoring_finds_what_the_run_found(capsys):
    before = results("scored")
    assert main(["score", "scored"]) == 0
    assert "frechet[shapes-features]" in capsys.readouterr().out
    after = results("scored")
    # Bit for bit, whatever the forwards of the run were.
    assert after["metrics"] == before["metrics"]


def test_features_of_an_extractor_of_ones_own_are_refused(capsys):
    content = results("scored")
    content["protocol"]["extractor"] = "mine"
    Path("scored/results.json").write_text(json.dumps(content))
    assert "scored has features of mine, which `bigain score` cannot load; give --protocol" in refused(capsys, "scored")
    assert main(["score", "scored", "--protocol", "shapes-features"]) == 0


def test_lpips_where_its_weights_are(capsys, tmp_path):
    assert "LPIPS cannot be computed" in refused(capsys, "scored", "--against", "plain", "--lpips", "squeeze")
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(squeezenet1_1().state_dict(), cache / "squeezenet1_1-b8a52dc0.pth")
    assert main(["score", "scored", "--against", "plain", "--lpips", "squeeze"]) == 0
    assert results("scored")["metrics"]["lpips[squeeze]"]["value"] > 0


def test_clip_score_of_a_run_and_during_a_run(capsys, tmp_path):
    clip = str(save_clip(tmp_path / "tiny-clip"))
    metric = ["--metric", "ClipScore", "--metric.folder", clip]
    assert main(["score", "scored", *metric]) == 0
    assert "clip_score[tiny-clip]" in capsys.readouterr().out
    stored = results("scored")["metrics"]["clip_score[tiny-clip]"]
    assert (stored["n"], stored["unit"], stored["better"]) == (4, "", "higher")

    def during(output, folder, *args):
        metrics = f"[{{class_path: bigain.metrics.ClipScore, init_args: {{folder: {folder}}}}}]"
        return predict("demo_lgtm_generation.yaml", output, "--model.metrics", metrics, *args)

    assert during("during", clip, "--data.batch_size", "3") == 0
    assert results("during")["metrics"]["clip_score[tiny-clip]"] == stored
    # Without it, images are made all the same.
    assert during("later", "absent") == 1
    assert "CLIP score" in capsys.readouterr().out
    assert "from absent: no such folder; get one with" in results("later")["clip_score_missing"]
    assert main(["score", "later", *metric]) == 0
    assert results("later")["clip_score_missing"] is None
    assert results("later")["metrics"]["clip_score[tiny-clip]"] == stored


def test_metrics_by_name_and_distances_of_a_second_protocol(capsys, tmp_path):
    dino, clip, before = str(save_dino(tmp_path / "dino")), str(save_clip(tmp_path / "tiny")), results("scored")
    similarity = ["--metric", "DinoSimilarity", "--metric.weights", dino]
    assert "add --against OTHER" in refused(capsys, "scored", *similarity)
    assert main(["score", "scored", "--against", "plain", *similarity]) == 0
    assert main(["score", "scored", "--metric", "PickScore", "--metric.folder", clip]) == 0
    assert "hf download facebook/dinov2-large" in refused(capsys, "scored", "--protocol", "dinov2")
    assert main(["reference", "plain/samples", "dino.npz", "--protocol", "dinov2", "--weights", dino]) == 0
    assert main(["score", "scored", "--protocol", "dinov2", "--weights", dino, "--reference", "dino.npz"]) == 0
    after = results("scored")
    new = {name.partition("[")[0] for name in after["metrics"].keys() - before["metrics"].keys()}
    assert {"psnr", "ssim", "dino_similarity", "pick_score", "frechet", "kid"} <= new
    (similar,) = [value for name, value in after["metrics"].items() if name.startswith("dino_similarity[dinov2-")]
    assert -1 <= similar["low"] < similar["value"] < similar["high"] < 1
    # The log and what compares it keep the run's own extractor.
    assert after["protocol"]["extractor"] == before["protocol"]["extractor"] == "shapes-features"
    assert after["protocol"]["reference"] == before["protocol"]["reference"]
    second = after["protocol"]["further_references"]["dinov2"]
    assert (second["reference_file"], second["reference"]["n"]) == ("dino.npz", 4)
    assert len(second["reference"]["sha256"]) == 64
    assert main(["score", "scored", "--against", "plain"]) == 0
    kept = {name for name in after["metrics"] if not name.startswith("dino_similarity")}
    assert results("scored")["metrics"].keys() == kept


def test_fidelity_to_another_run_replaces_all_of_it_and_is_named():
    assert main(["score", "scored", "--against", "plain"]) == 0
    assert results("scored")["fidelity_to"]["run"] == "plain"
    assert results("scored")["fidelity_to"]["compressors"] == []
    # A repeated run, which has nothing to do, keeps what was added.
    before = results("scored")["metrics"]
    assert predict("demo_lgtm_generation.yaml", "scored", "--model.items_per_forward", "2") == 0
    assert results("scored")["metrics"] == before
    assert "psnr" in before
    shutil.copytree("scored", "copy")
    assert main(["score", "scored", "--against", "copy"]) == 0
    # Of equal images there is no ratio, and the one to the other run is gone.
    assert "psnr" not in results("scored")["metrics"]
    assert results("scored")["psnr_missing"] == "all images equal those of copy"
    assert results("scored")["metrics"]["ssim"]["value"] == pytest.approx(1)
    assert results("scored")["fidelity_to"]["compressors"] == ["LGTM"]
    assert main(["report", "scored", "plain", "--output", "report"]) == 0
    text = Path("report/report.md").read_text()
    assert "ts fidelity is to a compressed run (copy)" in text
    assert "SSIM" not in text


def test_fidelity_to_images_of_other_noise_is_refused(capsys):
    path = Path("plain/results.json")
    content = results("plain")
    content["protocol"]["seed"] = 7
    path.write_text(json.dumps(content))
    message = refused(capsys, "scored", "--against", "plain")
    assert "scored and plain differ in seed (0 and 7)" in message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["run", "bigain score --help"]),
        (["nowhere"], ["nowhere does not exist"]),
        (["scored", "--protocol", "fid"], ["fid", "pytorch-fid"]),
        (["scored", "--reference", "real.npz"], ["pytorch-fid, not shapes-features"]),
        (["scored", "--reference", "absent.npz"], ["absent.npz does not exist"]),
        (["scored", "--reference", "scored"], ["reference scored cannot be used", "Is a directory"]),
        (["scored", "--metric", "ClipScore", "--metric.foo", "3"], ["no argument 'foo'; see bigain score --help"]),
        (
            ["scored", "--metric", "Inception"],
            ["no class Inception; known: ClipScore, DinoSimilarity, PickScore, or the"],
        ),
        (["scored", "--against", "./scored"], ["scored is compared with itself"]),
        (["scored", "--lpips", "vgg"], ["--lpips compares the images of two runs; add --against OTHER"]),
        (["featured"], ["featured kept no images"]),
        (["unscored", "--weights", "absent.pth"], ["absent.pth", "looked for"]),
    ],
    ids=str,
)
def test_bad_input_is_one_message(capsys, args, words):
    message = refused(capsys, *args)
    for word in words:
        assert word in message


def test_lost_or_broken_images_are_named(capsys):
    broken = Path("scored/samples/test/000002.png")
    broken.write_bytes(broken.read_bytes()[:60])
    assert "cannot read scored/samples/test/000002.png" in refused(capsys, "scored")
    Image.new("RGB", (40, 32)).save(broken)
    assert "000002.png has 40 x 32 px" in refused(capsys, "scored")
    broken.unlink()
    assert "scored has 3 of its 4 images" in refused(capsys, "scored")
    Path("scored/images.txt").unlink()
    assert "scored/images.txt cannot be read" in refused(capsys, "scored")


def test_runs_without_a_common_image(capsys):
    listed = Path("plain/images.txt")
    listed.write_text(listed.read_text().replace("test/", "other/"))
    Path("plain/samples/test").rename("plain/samples/other")
    assert "no image in common" in refused(capsys, "scored", "--against", "plain")
