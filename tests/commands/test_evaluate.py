"""`bigain evaluate`: both tasks with one compressor, and their common row."""

import csv
import json
from pathlib import Path

import pytest
from program import message_of

from bigain.commands.configs import shipped_configs
from bigain.commands.evaluate import _comparable, joint_row
from bigain.commands.main import main
from bigain.runs.schema import TASKS

QUICK = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
QUICK += ["--classification.model.trials", "[1,2]", "--classification.model.keep", "[2,1]"]
QUICK += ["--classification.data.images", "2", "--generation.model.steps=1", "--generation.data.images", "5"]
pytestmark = pytest.mark.usefixtures("elsewhere")


def evaluate(config, *args, output="out"):
    return main(["evaluate", "--config", config, *QUICK, "--output", output, *args])


def refused(capsys, config, *args):
    message = message_of(capsys, lambda: evaluate(config, *args))
    assert not Path("out").exists()
    return message


def test_one_row_for_both_tasks(capsys):
    assert evaluate("demo_lgtm_joint.yaml") == 0
    assert "FLOPs each" in capsys.readouterr().out
    row = json.loads(Path("out/joint.json").read_text())
    assert (row["name"], row["model"], row["dataset"]) == ("demo_lgtm_joint", "shapes_dit", "ShapeTextures")
    assert (row["compressor"], row["images_classified"], row["images_generated"]) == ("LGTM", 2, 5)
    assert json.loads(row["settings"])[0]["ratio"] == 0.5
    parts = {task: json.loads(Path(f"out/{task}/results.json").read_text()) for task in TASKS[:2]}
    assert row["top1"] == parts["classification"]["metrics"]["top1"]["value"]
    name = "frechet[shapes-features]"
    assert row[name] == parts["generation"]["metrics"][name]["value"]
    assert parts["generation"]["protocol"]["steps"] == 1
    assert parts["classification"]["evaluations"]["planned_per_image"] == 18
    with Path("out/joint.csv").open(newline="") as file:
        (read,) = csv.DictReader(file)
    assert read == {key: str(value) for key, value in row.items()}
    assert evaluate("demo_lgtm_joint.yaml") == 0
    assert "5 images already done" in capsys.readouterr().out


def test_files_beside_the_joint_file_come_first_and_a_missing_distance_is_reported():
    folder = Path("configs")
    folder.mkdir()
    for name in ("demo_none.yaml", "demo_none_generation.yaml"):
        text = (shipped_configs() / name).read_text()
        for part in ("models", "data"):
            text = text.replace(f" {part}/", f" {shipped_configs()}/{part}/")
        (folder / name).write_text(text.replace("seed: 0", "seed: 5"))
    (folder / "joint.yaml").write_text("classification: demo_none.yaml\ngeneration: demo_none_generation.yaml\n")
    # The missing distance makes the run incomplete, and the row lacks it.
    assert evaluate("configs/joint.yaml", "--generation.model.reference", "absent.npz") == 1
    assert not [name for name in json.loads(Path("out/joint.json").read_text()) if name.startswith("frechet")]
    assert json.loads(Path("out/generation/results.json").read_text())["protocol"]["seed"] == 5
    assert json.loads(Path("out/joint.json").read_text())["compressor"] == "none"


@pytest.mark.parametrize(
    ("classification", "generation", "words"),
    [
        ("demo_lgtm", "demo_tome_generation", "different compressors"),
        ("demo_none", "demo_lgtm_generation", "different compressors"),
        (
            "demo_lgtm",
            "demo_unet_lgtm_generation",
            "different models, shapes_dit and shapes_unet; a joint row needs one",
        ),
        ("demo_lgtm_generation", "demo_lgtm", "is for classification, but its model is a DiffusionSampler"),
    ],
)
def test_configurations_have_to_belong_together(capsys, classification, generation, words):
    Path("mine.yaml").write_text(f"classification: {classification}.yaml\ngeneration: {generation}.yaml\n")
    # Without the options that only one of the tasks has.
    assert words in message_of(capsys, lambda: main(["evaluate", "--config", "mine.yaml", "--output", "out"]))
    assert not Path("out").exists()


def results(metrics=("top1",)):
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2}
    return {
        "compressors": [{"class": "IEKVD", "settings": {"factor": 2, "alpha": 0.9}}],
        "metrics": dict.fromkeys(metrics, estimate),
        "model": {"name": "m"},
        "dataset": {"name": "d", "images": 2},
        "flops": {"gflops_per_evaluation": 1.0, "reduction_percent": 10.0},
        "timing": {"seconds_per_image": 2.0},
    }


def test_what_differs_between_the_tasks_in_the_paper_may_differ_and_nothing_else():
    def comparable(kind="IEKVD", **settings):
        return _comparable({"class": kind, "settings": {"factor": 2, "alpha": 0.9, **settings}})

    assert comparable() == comparable(alpha="Linear(start=0.8, end=1.2)") == comparable(skip_zero=True)
    # Images have one class, so ToMe's random destinations are redrawn ones.
    assert comparable(destination="redrawn") == comparable(destination="random") != comparable(destination="first")
    assert comparable() != comparable(factor=3)
    assert comparable() != comparable("ToDo")


def test_a_row_has_the_main_numbers_of_each_task():
    third = results(metrics=("knn", "knn[2@100]"))
    row = joint_row("one", results(), results(metrics=("frechet[x]",)), third)
    assert (row["top1"], row["frechet[x]"], row["compressor"]) == (0.5, 0.5, "IEKVD")
    assert (row["knn"], row["knn_low"], row["knn_high"], row["images_probed"]) == (0.5, 0.4, 0.6, 2)
    assert "knn[2@100]" not in row


def test_a_method_that_cannot_classify_has_a_row_without_an_accuracy(capsys):
    row = joint_row("one", None, results(metrics=("frechet[x]",)))
    assert (row["top1"], row["top1_low"], row["images_classified"]) == ("n/a: not a function of one step", None, 0)
    assert (row["frechet[x]"], row["gflops_per_evaluation"], row["seconds_per_sample"]) == (0.5, 1.0, 2.0)
    args = ["--compressor", "compressors/feature_cache.yaml", "--generation.model.steps", "3"]
    assert evaluate("demo_none_joint.yaml", *args) == 0
    assert not Path("out/classification").exists()
    row = json.loads(Path("out/joint.json").read_text())
    assert (row["top1"], row["compressor"]) == ("n/a: not a function of one step", "FeatureCache")
    assert row["flops_reduction_percent"] > 10
    message = message_of(capsys, lambda: main(["predict", "--config", "demo_none.yaml", *args[:2], "--output", "one"]))
    assert "FeatureCache only generates" in message
    assert not Path("one").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", ["mine.yaml", "expected"]),
        ("classification: demo_lgtm.yaml", ["mine.yaml", "generation"]),
        ("classification: a.yaml\ngeneration: b.yaml\nmore: c.yaml", ["mine.yaml", "expected"]),
        ("classification: absent.yaml\ngeneration: demo_lgtm_generation.yaml", ["absent.yaml"]),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:20],
)
def test_bad_joint_files(capsys, content, words):
    Path("mine.yaml").write_text(content)
    message = refused(capsys, "mine.yaml")
    for word in words:
        assert word in message


def test_bad_command_lines(capsys):
    assert "absent.yaml" in refused(capsys, "absent.yaml")
    assert "nonsense" in refused(capsys, "demo_lgtm_joint.yaml", "--nonsense", "1")
    assert "steps must be at least 1" in refused(capsys, "demo_lgtm_joint.yaml", "--generation.model.steps", "0")
    assert main(["evaluate"]) == 2
    assert "required: config; see bigain evaluate --help" in capsys.readouterr().err


def test_the_tasks_have_the_same_number_of_processes(capsys):
    devices = ["--trainer.accelerator", "cpu", "--generation.trainer.devices", "2"]
    message = message_of(capsys, lambda: main(["evaluate", "--config", "demo_lgtm_joint.yaml", *devices]))
    assert "different numbers of processes, 1 and 2; a joint row needs one" in message
