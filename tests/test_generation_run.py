"""Generation from the command line: SD and DiT, prompts and captions, refusals, resuming, baselines."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import message_of

from bigain.commands.main import main
from bigain.data.images import read_images
from bigain.metrics import ShapeFeatures
from bigain.metrics.frechet import frechet_distance
from bigain.metrics.inception import VARIABLE
from bigain.metrics.reference import Moments, ReferenceStatistics

QUICK = ["--model.steps", "2", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
QUICK += ["--trainer.enable_progress_bar", "false", "--data.batch_size", "2", "--data.num_workers", "0"]
QUICK += ["--inspect", "0"]
TINY = ["--data.image_size", "32", "--model.backbone.dtype", "float32"]
# diffusers converts tensors to arrays in a way that newer numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def _without_inception_weights(elsewhere, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(VARIABLE, raising=False)


def predict(config, *args, output="out"):
    return main(["predict", "--config", config, *QUICK, "--output", output, *args])


def demo(*args, images=4, config="demo_lgtm_generation.yaml", output="out"):
    return predict(config, "--data.images", str(images), *args, output=output)


def refused(capsys, *args):
    return message_of(capsys, lambda: demo(*args))


def results(folder="out"):
    return json.loads(Path(folder, "results.json").read_text())


def records(folder="out"):
    lines = Path(folder, "predictions/rank-0.jsonl").read_text().splitlines()
    return {record["image_id"]: record for record in map(json.loads, lines)}


def samples(folder="out"):
    root = Path(folder, "samples")
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_dit_with_ddim_writes_images_distance_and_summary(capsys):
    assert demo() == 0
    output = capsys.readouterr().out
    for word in ("ShapeTextures, 4 images", "shapes_dit", "LGTM(ratio=0.5", "frechet[shapes-features]", "4 per image"):
        assert word in output
    stored = results()
    assert stored["task"] == "generation"
    assert stored["evaluations"] == {"per_image": 4}
    assert stored["distance_missing"] is None
    assert stored["protocol"]["scheduler"] == stored["scheduler"]["class"] == "DDIMScheduler"
    assert stored["scheduler"]["beta_schedule"] == "squaredcos_cap_v2"
    assert stored["protocol"]["reference"]["n"] > 1000
    assert [site["tokens_out"] for site in stored["sites"]] == [128] * 4
    assert len(samples()) == 4
    assert Path("out/contact_sheet.png").is_file()


def test_sd_with_euler_makes_an_image_per_photograph_from_its_prompt(stand_in, pets, capsys):
    model = ["--model.backbone.model", str(stand_in)]
    # The stand-in has two levels where SD 2.0 has four.
    assert predict("pets_lgtm_generation.yaml", *TINY, *model) == 1
    stored = results()
    assert stored["protocol"]["scheduler"] == "EulerDiscreteScheduler"
    assert stored["protocol"]["guidance"] == 7.5
    assert {record["prompt"] for record in records().values()} == {
        f"a photo of a {breed}, a type of pet." for breed in ("Abyssinian", "American Bulldog", "Yorkshire Terrier")
    }
    assert set(samples()) == {f"{image_id}.png" for image_id in records()}
    captured = capsys.readouterr()
    assert "weights-inception-2015-12-05-6726825d.pth" in captured.out
    assert stored["metrics"] == {}
    assert stored["distance_missing"].startswith("the Inception weights")


def test_jpeg_as_the_release_and_any_scheduler_by_class_path(capsys):
    scheduler = ["--model.scheduler", "diffusers.HeunDiscreteScheduler"]
    scheduler += ["--model.scheduler_options", "{timestep_spacing: trailing}"]
    assert demo("--model.images", "jpeg100_truncate", "--model.guidance", "1", *scheduler) == 0
    # Heun evaluates twice per step except for the last.
    assert results()["evaluations"] == {"per_image": 3}
    assert results()["protocol"]["scheduler_options"] == {"timestep_spacing": "trailing"}
    assert {Path(name).suffix for name in samples()} == {".jpg"}
    with Image.open("out/samples/test/000000.jpg") as image:
        assert image.format == "JPEG"
        assert all(set(table) == {1} for table in image.quantization.values())
    features = ShapeFeatures()(read_images([Path("out/samples", name) for name in sorted(samples())])).numpy()
    reference = ReferenceStatistics.load(
        Path(__file__).parents[1] / "bigain/assets/shapes_features/reference.npz", "shapes-features"
    )
    expected = frechet_distance(Moments.of([features]), reference.moments)
    assert results()["metrics"]["frechet[shapes-features]"]["value"] == pytest.approx(expected, rel=1e-4)


def test_a_reference_that_is_not_there_yet(capsys):
    assert demo("--model.reference", "later.npz") == 1
    assert "reference later.npz does not exist" in capsys.readouterr().out
    real = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    ReferenceStatistics(Moments.of([real]), "shapes-features").save("later.npz")
    assert demo("--model.reference", "later.npz") == 0
    # Without features of the reference there is no distance but one.
    distances = [name for name in results()["metrics"] if not name.startswith("agreement")]
    assert distances == ["frechet[shapes-features]"]


def test_a_reference_of_another_protocol_is_refused_before_anything_is_made(capsys):
    real = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    ReferenceStatistics(Moments.of([real]), "pytorch-fid").save("other.npz")
    message = refused(capsys, "--model.reference", "other.npz")
    assert "other.npz cannot be used: it was made with protocol pytorch-fid, not shapes-features" in message
    assert samples() == {}


def test_a_baseline_is_compared_image_by_image(capsys):
    assert demo("--baseline", "true") == 0
    output = capsys.readouterr().out
    assert "frechet[shapes-features] without" in output
    metrics = results()["metrics"]
    assert metrics["psnr"]["n"] == metrics["ssim"]["n"] == 4
    assert 5 < metrics["psnr"]["value"] < 80
    assert -1 <= metrics["ssim"]["value"] < 1
    assert "psnr" not in results("out/baseline")["metrics"]
    assert samples("out/baseline").keys() == samples().keys()
    assert samples("out/baseline") != samples()
    # The contact sheet has both sides of every image, below a line of text.
    with Image.open("out/contact_sheet.png") as sheet:
        left, right = (np.asarray(sheet.crop((x, 70, x + 128, 198)).convert("RGB"))[::4, ::4] for x in (10, 138))
    name = sorted(samples())[0]
    for folder, side in (("out", left), ("out/baseline", right)):
        assert np.array_equal(np.asarray(Image.open(Path(folder, "samples", name))), side)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model.scheduler", "diffusers.UNet2DModel"], ["scheduler", "UNet2DModel"]),
        (["--model.scheduler", "diffusers.NoScheduler"], ["NoScheduler"]),
        (["--model.steps", "0"], ["steps must be at least 1"]),
        (["--model.steps", "2000"], ["2000", "1000"]),
        (["--model.guidance", "-1"], ["guidance at least 0"]),
        (["--model.images", "gif"], ["gif"]),
        (["--model.images", "none", "--model.extractor", "null"], ["give an extractor"]),
        (["--model.backbone.model", "shapes_unet"], ["shapes_unet", "transformer"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_bad_input_ends_with_one_message(capsys, args, words):
    message = refused(capsys, *args)
    for word in words:
        assert word in message
    assert samples() == {}


def test_a_run_extends_to_more_and_to_fewer_images(capsys):
    demo(images=2)
    assert demo(images=4, output="whole") == demo("--extend", "true", images=4)
    assert results()["metrics"] == results("whole")["metrics"]
    assert len(samples()) == 4
    demo("--extend", "true", images=3)
    assert results()["dataset"]["images"] == 3
    assert results()["distance_missing"] == "3 images: too few for a distance"
