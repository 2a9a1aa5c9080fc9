"""The inspector in real runs: event files and pictures are of the results, and nothing else changes."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from bigain.backbones import DiT
from bigain.callbacks import PredictionWriter
from bigain.commands.main import main
from bigain.compressors import LGTM
from bigain.data import ShapeTextures
from bigain.errors import InputError
from bigain.inspector import Inspector
from bigain.inspector.maps import read_maps
from bigain.modules import DiffusionClassifier

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
CLASSIFY = ["--model.trials", "[2,4]", "--model.keep", "[3,1]", "--data.images", "5", "--data.batch_size", "2", *QUICK]
GENERATE = ["--model.steps", "3", "--data.images", "4", "--data.batch_size", "3", *QUICK]
CURVES = {f"curves/{name}" for name in ("error_by_timestep", "margin_by_class", "stage_survival", "confusion_matrix")}
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
# diffusers converts tensors to arrays in a way that newer numpy deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.pictures,
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bigain"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def predict(config, *args, output="out", quick=CLASSIFY):
    # Few generated images have no distance, which is status 1.
    assert main(["predict", "--config", config, *quick, "--output", output, *args]) in (0, 1)


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


def test_the_board_has_the_numbers_and_pictures_of_a_classification():
    predict("demo_lgtm.yaml")
    events, found = board(), results()
    tags = set(events.Tags()["images"])
    wanted = {f"{kind}/image_{i}" for kind in ("tokens", "scores") for i in range(4)}
    assert tags == wanted | CURVES | {"salience/images", "images/followed"}
    for tag in tags:
        (shown,) = events.Images(tag)
        image = Image.open(io.BytesIO(shown.encoded_image_string))
        assert image.size == (shown.width, shown.height) >= (200, 100)
        assert shown.encoded_image_string == pictures()[f"{tag.replace('/', '_')}.png"]
        assert shown.step == 5
    assert events.Scalars("metrics/top1")[0].value == pytest.approx(found["metrics"]["top1"]["value"])
    assert events.Scalars("flops/reduction_percent")[0].value == pytest.approx(found["flops"]["reduction_percent"])
    sites = [(one.step, one.value) for one in events.Scalars("sites/tokens_out")]
    assert sites == [(site["index"], site["tokens_out"]) for site in found["sites"]]
    # All images of the run, by hand from its log.
    lines = logged().values()
    first = sorted(found["protocol"]["stages"][0])
    series = {one.step: one.value for one in events.Scalars("error_by_timestep/true_class")}
    times = {}
    for line in lines:
        for label, trial, t, error in zip(
            line["classes"], line["trials"], line["timesteps"], line["errors"], strict=True
        ):
            if trial in first and label == line["label"]:
                times.setdefault(t, []).append(error)
    assert series == pytest.approx({t: np.mean(errors) for t, errors in times.items()})
    left = [np.mean([line["label"] in line["survivors"][s] for line in lines]) for s in range(2)]
    assert [one.value for one in events.Scalars("survival/true_class")] == pytest.approx([1, *left])
    text = events.Tensors("run/summary/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "LGTM(ratio=0.5" in text


def test_the_browsers_table_has_settings_and_final_metrics():
    predict("demo_todo.yaml")
    events = board()
    begun = hparams(events, metadata.SESSION_START_INFO_TAG).session_start_info.hparams
    told = {name: value.string_value or value.number_value for name, value in begun.items()}
    assert told.pop("protocol").startswith("stages [[")
    assert told == {
        "task": "classification", "dataset": "ShapeTextures", "model": "shapes_dit", "method": "ToDo", "factor": 2,
        "compressor": "ToDo(factor=2)", "images": 5, "seed": 0, "precision": "bf16-true",
    }  # fmt: skip
    experiment = hparams(events, metadata.EXPERIMENT_TAG).experiment
    assert {"method", "ratio", "factor", "tau", "dataset", "model"} <= {one.name for one in experiment.hparam_infos}
    metrics = {one.name.tag for one in experiment.metric_infos}
    assert metrics == {
        "metrics/top1", "metrics/shape", "metrics/fill",
        "flops/gflops_per_evaluation", "flops/reduction_percent", "timing/seconds_per_image",
    }  # fmt: skip
    # Every metric of the table is a scalar of this run, once.
    for tag in metrics:
        assert len(events.Scalars(tag)) == 1
    assert hparams(events, metadata.SESSION_END_INFO_TAG).session_end_info.status


@pytest.mark.parametrize("config", ["demo_lgtm.yaml", "demo_unet_iekvd.yaml"])
def test_no_number_changes(config):
    small = ["--model.trials", "[1,2]", "--model.keep", "[2,1]"]
    predict(config, *small, output="with")
    predict(config, *small, "--inspect", "0", output="without")
    assert logged("with") == logged("without")
    first, second = (np.load(f"{folder}/predictions/predictions.npz") for folder in ("with", "without"))
    assert first["errors"].tobytes() == second["errors"].tobytes()
    assert results("with")["metrics"] == results("without")["metrics"]
    assert results("with")["fingerprint"] == results("without")["fingerprint"]
    assert not Path("without/pictures").exists()
    assert board("without").Tags()["images"] == []


def test_no_image_changes_and_generations_are_followed_by_step():
    predict("demo_tome_generation.yaml", output="with", quick=GENERATE)
    predict("demo_tome_generation.yaml", "--inspect", "null", output="without", quick=GENERATE)
    images = [{path.name: path.read_bytes() for path in Path(o, "samples").rglob("*.png")} for o in ("with", "without")]
    assert images[0] == images[1]
    assert len(images[0]) == 4
    assert logged("with") == logged("without")
    tags = set(board("with").Tags()["images"])
    assert tags >= {"tokens/image_3", "salience/images", "images/followed", "samples/contact_sheet"}
    assert not tags & CURVES
    fourth = sorted(logged("with"))[3]
    found = [read_maps(path, fourth) for path in Path("with/pictures").glob("maps_*.npz")]
    (maps,) = [maps for maps in found if maps is not None]
    assert [len(one.timesteps) for one in maps] == [3] * 4


def test_without_a_compressor_there_are_curves_and_images():
    predict("demo_none.yaml", "--data.per_class", "1", "--inspect", "2")
    assert set(board().Tags()["images"]) == CURVES | {"images/followed"}
    assert {path.suffix for path in Path("out/pictures").iterdir()} == {".png"}


def forget(rank, lines, folder="out"):
    """Let a log end early, as after a kill."""
    log = Path(folder, f"predictions/rank-{rank}.jsonl")
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:lines]))


def test_a_run_that_goes_on_shows_the_whole_of_it(capsys):
    predict("demo_abm.yaml", "--data.batch_size", "5")
    whole = pictures()
    assert len(whole) == 14
    # Two images are done again, in other batches; then none.
    forget(0, 3)
    predict("demo_abm.yaml", "--data.batch_size", "1")
    assert results()["timing"]["resumed_images"] == 3
    assert pictures() == whole
    predict("demo_abm.yaml")
    assert pictures() == whole
    assert len(board().Images("tokens/image_0")) == 1
    assert len(board().Scalars("error_by_timestep/margin")) == 2
    assert "no pictures of the tokens" not in capsys.readouterr().err


def test_images_that_were_done_without_it_are_told(caplog):
    predict("demo_tome.yaml", "--inspect", "0")
    predict("demo_tome.yaml")
    assert "no pictures of the tokens of test/000000, test/000001" in caplog.text
    assert set(board().Tags()["images"]) == CURVES | {"images/followed"}


def test_without_a_logger_there_are_files_all_the_same_and_overwriting_deletes_them():
    predict("demo_frequency_kv.yaml", "--trainer.logger", "false")
    assert "tokens_image_0.png" in pictures()
    assert not Path("out/tensorboard").exists()
    Path("out/pictures/mine.txt").write_text("kept")
    predict("demo_none.yaml", "--inspect", "0", "--overwrite", "true")
    assert [path.name for path in Path("out/pictures").iterdir()] == ["mine.txt"]


def test_a_picture_that_cannot_be_written_fails_no_run(caplog):
    predict("demo_none.yaml", "--inspect", "0")
    Path("out/pictures").write_text("a file where the folder should be")
    assert main(["predict", "--config", "demo_none.yaml", *CLASSIFY, "--output", "out"]) == 0
    assert "pictures could not be drawn" in caplog.text
    assert results()["metrics"]["top1"]["n"] == 5


def test_a_negative_number_is_refused(capsys):
    assert main(["predict", "--config", "demo_lgtm.yaml", *CLASSIFY, "--inspect", "-1"]) == 2
    assert "inspect must be at least 1 image, or 0 or null" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_show_what_one_shows():
    for output, options in (("one", []), ("two", TWO)):
        command = ["predict", "--config", "demo_sito.yaml", *CLASSIFY, "--trainer.precision", "32-true", *options]
        told = subprocess.run(
            [sys.executable, "-m", "bigain", *command, "--output", output], capture_output=True, text=True, timeout=300
        )
        assert told.returncode == 0, told.stderr
    assert pictures("one") == pictures("two")
    assert len(list(Path("two/tensorboard").glob("*.inspector"))) == 1
    assert len(board("two").Images("tokens/image_3")) == 1


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:GPU available but not used")
def test_python_code_without_results_is_told():
    model = DiffusionClassifier(DiT("shapes_dit"), trials=[1, 2], keep=[2, 1])
    callbacks = [LGTM(ratio=0.5), Inspector(images=1), PredictionWriter()]
    trainer = Trainer(
        callbacks=callbacks, default_root_dir="out", logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="put a ResultsWriter behind it"):
        trainer.predict(model, datamodule=ShapeTextures(images=1), return_predictions=False)
    assert callbacks[0].onlookers == []
    assert len(list(Path("out/pictures").glob("maps_*.npz"))) == 1


def test_a_race_has_no_stages_to_show():
    predict("demo_lgtm.yaml", "--model.race", "{}")
    tags = set(board().Tags()["images"])
    assert CURVES - tags == {"curves/stage_survival"}
    assert any(tag.startswith("tokens/") for tag in tags)
