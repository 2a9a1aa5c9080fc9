"""The inspector in real runs: event files and pictures show the results, and nothing else changes."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from trainers import RecordingLogger

from bigain.commands.main import main
from bigain.data import ShapeTextures
from bigain.errors import InputError
from bigain.inspector import Inspector
from bigain.inspector.board import draw_image

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
CLASSIFY = ["--model.trials", "[2,4]", "--model.keep", "[3,1]", "--data.images", "5", "--data.batch_size", "2", *QUICK]
GENERATE = ["--model.steps", "2", "--data.images", "2", "--data.batch_size", "2", *QUICK]
CURVES = {f"curves/{name}" for name in ("error_by_timestep", "margin_by_class", "stage_survival", "confusion_matrix")}
MAPS = {f"{kind}/image_{i}" for kind in ("tokens", "scores", "salience") for i in range(4)}
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.pictures,
    pytest.mark.usefixtures("elsewhere"),
]


@pytest.fixture
def quick_curves(monkeypatch):
    """Curves in no time: drawing them takes half of a small run."""
    for name in ("error", "class", "survival", "confusion"):
        monkeypatch.setattr(f"bigain.inspector.board.{name}_figure", lambda *args: Figure((2, 1)))


def predict(config, *args, output="out", quick=CLASSIFY):
    # Few generated images have no distance, which is status 1.
    assert main(["predict", "--config", config, *quick, "--output", output, *args]) in (0, 1)


def image_tags(events):
    """Tags of pictures without their place."""
    return {tag.partition(" ")[2] for tag in events.Tags()["images"]}


def board(folder="out"):
    events = EventAccumulator(f"{folder}/tensorboard", size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return events.Reload()


def results(folder="out"):
    return json.loads(Path(folder, "results.json").read_text())


def logged(folder="out"):
    paths = sorted(Path(folder).glob("predictions/rank-*.jsonl"))
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return {line["image_id"]: {**line, "seconds": None} for line in lines}


def pictures(folder="out"):
    return {path.name: path.read_bytes() for path in Path(folder, "pictures").glob("*.png")}


def hparams(events, tag):
    content = events.summary_metadata[tag].plugin_data.content
    return HParamsPluginData.FromString(content)


def test_a_method_without_scores_in_its_first_step():
    predict("demo_importance_merging_generation.yaml", quick=GENERATE)
    assert {"scores_image_0.png", "tokens_image_1.png"} <= pictures().keys()


def test_the_board_has_the_numbers_pictures_and_settings_of_a_classification():
    predict("demo_lgtm.yaml")
    events, result = board(), results()
    assert image_tags(events) == MAPS | CURVES
    for tag in events.Tags()["images"]:
        (shown,) = events.Images(tag)
        image = Image.open(io.BytesIO(shown.encoded_image_string))
        assert image.size == (shown.width, shown.height) >= (200, 100)
        drawn = Image.open(f"out/pictures/{tag.partition(' ')[2].replace('/', '_')}.png")
        assert image.tobytes() == drawn.tobytes()
        assert shown.step == 5
    assert events.Scalars("metrics/top1")[0].value == pytest.approx(result["metrics"]["top1"]["value"])
    assert events.Scalars("flops/reduction_percent")[0].value == pytest.approx(result["flops"]["reduction_percent"])
    sites = [(event.step, event.value) for event in events.Scalars("sites/tokens_out")]
    assert sites == [(site["index"], site["tokens_out"]) for site in result["sites"]]
    # The curves, recomputed from the log.
    lines = logged().values()
    first = sorted(result["protocol"]["stages"][0])
    times = {}
    for line in lines:
        columns = (line[name] for name in ("classes", "trials", "timesteps", "errors"))
        for label, trial, t, error in zip(*columns, strict=True):
            if trial in first and label == line["label"]:
                times.setdefault(t, []).append(error)
    series = {event.step: event.value for event in events.Scalars("error_by_timestep/true_class")}
    assert series == pytest.approx({t: np.mean(errors) for t, errors in times.items()})
    left = [np.mean([line["label"] in line["survivors"][s] for line in lines]) for s in range(2)]
    assert [event.value for event in events.Scalars("survival/true_class")] == pytest.approx([1, *left])
    # TensorBoard's table of settings and metrics.
    begun = hparams(events, metadata.SESSION_START_INFO_TAG).session_start_info.hparams
    settings = {name: value.string_value or value.number_value for name, value in begun.items()}
    assert settings.pop("protocol").startswith("stages [[")
    assert settings.pop("compressor").startswith("LGTM(ratio=0.5")
    assert settings == {
        "task": "classification", "dataset": "ShapeTextures", "model": "shapes_dit", "method": "LGTM", "ratio": 0.5,
        "images": 5, "seed": 0, "precision": "32-true",
    }  # fmt: skip
    experiment = hparams(events, metadata.EXPERIMENT_TAG).experiment
    columns = {"method", "ratio", "factor", "tau", "dataset", "model"}
    assert columns <= {column.name for column in experiment.hparam_infos}
    metrics = {metric.name.tag for metric in experiment.metric_infos}
    costs = {"flops/gflops_per_evaluation", "flops/reduction_percent", "timing/seconds_per_image"}
    own = {"metrics/top1", "metrics/shape", "metrics/fill"} | costs
    # Runs of all kinds have these columns; every one of this run is a scalar, once.
    assert metrics > own | {"metrics/frechet[shapes-features]", "metrics/map_macro"}
    assert [len(events.Scalars(tag)) for tag in own] == [1] * 6
    assert hparams(events, metadata.SESSION_END_INFO_TAG).session_end_info.status


def test_no_number_changes(quick_curves):
    small = ["--model.trials", "[1]", "--model.keep", "[1]", "--data.images", "1"]
    predict("demo_unet_iekvd.yaml", *small, output="with")
    predict("demo_unet_iekvd.yaml", *small, "--inspect", "0", output="without")
    assert logged("with") == logged("without")
    first, second = (np.load(f"{folder}/predictions/predictions.npz") for folder in ("with", "without"))
    assert first["errors"].tobytes() == second["errors"].tobytes()
    assert results("with")["metrics"] == results("without")["metrics"]
    assert results("with")["fingerprint"] == results("without")["fingerprint"]
    assert not Path("without/pictures").exists()
    assert board("without").Tags()["images"] == []


def test_no_image_changes_and_generations_are_followed_by_step(monkeypatch):
    steps = []

    def counted(folder, number, subject, maps):
        steps.append([len(site.timesteps) for site in maps])
        draw_image(folder, number, subject, maps)

    monkeypatch.setattr("bigain.inspector.inspector.draw_image", counted)
    predict("demo_tome_generation.yaml", output="with", quick=GENERATE)
    predict("demo_tome_generation.yaml", "--inspect", "null", output="without", quick=GENERATE)
    images = [{path.name: path.read_bytes() for path in Path(o, "samples").rglob("*.png")} for o in ("with", "without")]
    assert images[0] == images[1]
    assert len(images[0]) == 2
    assert logged("with") == logged("without")
    sheets = [Path(output, "contact_sheet.png").read_bytes() for output in ("with", "without")]
    assert sheets[0] == sheets[1]
    tags = image_tags(board("with"))
    assert tags >= {"tokens/image_1", "salience/image_1", "samples/contact_sheet"}
    assert not tags & CURVES
    assert steps == [[2] * 4] * 2


def test_every_logger_gets_the_numbers_and_the_pictures():
    loggers = [
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "out", "name": "tensorboard", "version": ""}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": "csv", "name": "", "version": ""}},
        {"class_path": "trainers.RecordingLogger"},
    ]
    predict("demo_lgtm_generation.yaml", "--inspect", "1", "--trainer.logger", json.dumps(loggers), quick=GENERATE)
    events, shown = board(), RecordingLogger.shown
    assert {*events.Tags()["images"]} == shown["pictures"].keys() >= {"1 samples/contact_sheet", "2 tokens/image_0"}
    for tag, (step, (picture,)) in shown["pictures"].items():
        (image,) = events.Images(tag)
        assert image.step == step
        np.testing.assert_array_equal(
            np.asarray(picture), np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        )
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars.keys() == shown["scalars"].keys() >= {"flops/reduction_percent", "sites/tokens_out"}
    with Path("csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for tag, points in scalars.items():
        np.testing.assert_allclose(shown["scalars"][tag], points, rtol=1e-6)
        np.testing.assert_allclose([(int(r["step"]), float(r[tag])) for r in rows if r[tag]], points, rtol=1e-6)


def test_without_a_compressor_or_a_logger_there_are_curves():
    race = ["--model.race.error_level", "0.5", "--data.images", "2"]
    predict("demo_none.yaml", "--inspect", "2", "--trainer.logger", "false", *race)
    # A race has no stages.
    names = {path.name for path in Path("out/pictures").iterdir()}
    assert names == {f"{tag.replace('/', '_')}.png" for tag in CURVES - {"curves/stage_survival"}}
    assert not Path("out/tensorboard").exists()
    Path("out/pictures/mine.png").write_text("kept")
    few = ["--overwrite", "true", "--data.images", "1", "--model.trials", "[1]", "--model.keep", "[1]"]
    predict("demo_none.yaml", "--inspect", "0", *few)
    assert [path.name for path in Path("out/pictures").iterdir()] == ["mine.png"]


def test_a_resumed_run_shows_all_images(quick_curves):
    few = ["--data.images", "3", "--inspect", "2", "--data.batch_size"]
    predict("demo_abm.yaml", *few, "3")
    complete = pictures()
    assert len(complete) == 10
    # Two images are done again, in different batches; then none.
    log = Path("out/predictions/rank-0.jsonl")
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    for batch_size, resumed in (("1", 1), ("2", 3)):
        predict("demo_abm.yaml", *few, batch_size)
        assert results()["timing"]["resumed_images"] == resumed
        assert pictures() == complete


def test_images_done_without_the_inspector_have_no_pictures_and_failed_writes_are_reported(caplog, quick_curves):
    two = ["--data.images", "2"]
    predict("demo_tome.yaml", *two, "--inspect", "0")
    predict("demo_tome.yaml", *two)
    assert image_tags(board()) == CURVES
    shutil.rmtree("out/pictures")
    Path("out/pictures").write_text("a file in place of the folder")
    predict("demo_tome.yaml", *two)
    assert "pictures could not be drawn" in caplog.text
    assert results()["metrics"]["top1"]["n"] == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left"), InputError("No space left"), MemoryError()])
def test_a_disk_that_fills_up_while_drawing_ends_no_run(tmp_path, monkeypatch, caplog, error):
    def full(*args):
        raise error

    monkeypatch.setattr("bigain.inspector.inspector.draw_run", full)
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path, loggers=[], datamodule=ShapeTextures())
    Inspector().teardown(trainer, SimpleNamespace(trainer=trainer), "predict")
    assert "pictures could not be drawn" in caplog.text


def test_a_disk_that_fills_up_during_a_run_ends_no_run(monkeypatch, caplog, quick_curves):
    def full(*args):
        raise InputError("No space left")

    monkeypatch.setattr("bigain.inspector.inspector.draw_image", full)
    predict("demo_tome.yaml", "--data.images", "2")
    assert "pictures could not be drawn: InputError('No space left')" in caplog.text
    assert results()["metrics"]["top1"]["n"] == 2


def test_a_negative_number_is_refused(capsys):
    assert main(["predict", "--config", "demo_lgtm.yaml", *CLASSIFY, "--inspect", "-1"]) == 2
    assert "inspect must be at least 1 image, or 0 or null" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_show_what_one_shows():
    for output, options in (("one", []), ("two", TWO)):
        command = ["predict", "--config", "demo_sito.yaml", *CLASSIFY, "--trainer.precision", "32-true", *options]
        finished = subprocess.run(
            [sys.executable, "-m", "bigain", *command, "--output", output], capture_output=True, text=True, timeout=300
        )
        assert finished.returncode == 0, finished.stderr
    assert pictures("one") == pictures("two")
    assert len(board("two").Images("2 tokens/image_3")) == 1
