"""`bigain compare` and `explain` over runs that `bigain predict` and `bigain evaluate` made."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from program import bigain, program_in

from bigain.commands.main import main
from bigain.runs.logs import read_records

QUICK = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
TRIALS = ["--model.trials", "[2,4]", "--model.keep", "[3,1]"]
FEW = [*TRIALS, "--data.images", "4", "--data.batch_size", "2"]
MEASURED = ["--trainer.callbacks+=bigain.callbacks.FrequencyResponse"]


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    """Runs without compression, of ToMe with measuring, of both tasks."""
    root = tmp_path_factory.mktemp("runs")
    with program_in(root):
        for name, options in (("none", []), ("tome", [*MEASURED, "--trainer.callbacks.batches", "1"])):
            args = ["--config", f"demo_{name}.yaml", *QUICK, *FEW, *options, "--output", f"runs/{name}"]
            assert main(["predict", *args]) == 0
        both = [option.replace("--", "--classification.") for option in [*TRIALS, "--data.images", "4"]]
        both += ["--generation.model.steps", "1", "--generation.data.images", "5"]
        assert main(["evaluate", "--config", "demo_iekvd_joint.yaml", *QUICK, *both, "--output", "runs/joint"]) == 0
        yield root


def records(run):
    return read_records(Path("runs", run, "predictions"))


def right(run):
    """Which images the log of a run has right."""
    return {record.image_id: record.prediction == record.label for record in records(run).values()}


def test_a_comparison_is_that_of_the_logs(tmp_path):
    result = bigain("compare", "runs/none", "runs/tome", "runs/joint", "--json", str(tmp_path / "numbers.json"))
    assert (result.returncode, result.stderr) == (0, "")
    assert "ToMe at ratio 0.5" in result.stdout
    rows = json.loads((tmp_path / "numbers.json").read_text())["comparisons"]
    base = right("none")
    for row, run in zip(rows, ("tome", "joint/classification"), strict=True):
        mine = right(run)
        assert mine.keys() == base.keys()
        assert row["run"] == f"runs/{run}"
        assert row["only_run_right"] == sum(mine[image] and not base[image] for image in base)
        assert row["only_base_right"] == sum(base[image] and not mine[image] for image in base)
        assert row["n"] == 4


def test_the_stored_response_is_of_the_first_batch():
    response = json.loads(Path("runs/tome/frequency_response.json").read_text())
    assert (response["batches"], response["images"]) == (1, 2)
    assert [site["name"] for site in response["sites"]] == [f"transformer_blocks.{i}" for i in range(4)]
    for site in response["sites"]:
        # 2 images, 2 trials of 16 classes and 2 more of 3: forwards of 8 rows, the last one of a stage filled up.
        assert site["rows"] == 64 + 16
        assert sum(site["modes"]) == 256
        energy = {kind: np.array(site[kind]) for kind in ("original", "compressed", "error")}
        assert all(values.shape == (9,) for values in energy.values())
        # By Cauchy and Schwarz, for every compressor.
        a, b, e = (np.sqrt(energy[kind]) for kind in ("original", "compressed", "error"))
        assert (abs(a - b) <= e + 1e-9).all()
        assert (e <= a + b + 1e-9).all()
        assert site["kept"][8] < 1 < 1e3 * site["destroyed"][8]


def test_an_explanation_is_that_of_the_logs(tmp_path):
    args = ["runs/tome", "runs/joint", "--baseline", "runs/none", "--output", str(tmp_path)]
    result = bigain("explain", *args, "--json", str(tmp_path / "x.json"))
    assert (result.returncode, result.stderr) == (0, "")
    assert "Energy kept / destroyed, in percent of the energy" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "explain.png", "explain.svg", "explain.pdf"}
    tome, joint = json.loads((tmp_path / "x.json").read_text())["explanations"]
    assert joint["frequencies"] is None
    for run, side in (("none", "base"), ("tome", "run")):
        margins = [_margins(record) for record in records(run).values()]
        assert tome["margins"][side]["mu"] == pytest.approx(np.mean(margins), rel=1e-9)
        assert tome["margins"][side]["sigma"] == pytest.approx(np.std(margins), rel=1e-9)
        assert tome["margins"][side]["error"] == pytest.approx(np.mean(np.mean(margins, axis=1) <= 0))
    assert (tome["margins"]["images"], tome["margins"]["trials_per_image"]) == (4, 2)


def _margins(record):
    """Of one image on the trials that all 16 classes have, from its log."""
    errors = dict(zip(zip(record.classes, record.trials, strict=True), record.errors, strict=True))
    trials = [t for t in range(4) if all((c, t) in errors for c in range(16))]
    score = {c: sum(np.float64(errors[c, t]) for t in trials) for c in range(16) if c != record.label}
    rival = min(score, key=score.get)
    return [np.float64(np.float32(errors[rival, t])) - np.float32(errors[record.label, t]) for t in trials]


@pytest.mark.slow
def test_two_processes_measure_together():
    args = ["--config", "demo_tome.yaml", *QUICK, *MEASURED, "--model.trials", "[1]", "--model.keep", "[1]"]
    args += ["--data.images", "2", "--data.batch_size", "1"]
    both = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--output", "two"]
    # A process group of two ranks ends together, so pytest must not be one of them.
    subprocess.run([sys.executable, "-m", "bigain", "predict", *args, *both], check=True, timeout=300)
    assert main(["predict", *args, "--output", "one"]) == 0
    one, two = (json.loads(Path(name, "frequency_response.json").read_text()) for name in ("one", "two"))
    assert (one["images"], two["images"]) == (2, 2)
    for a, b in zip(one["sites"], two["sites"], strict=True):
        assert a["rows"] == b["rows"]
        assert a["kept"] == pytest.approx(b["kept"], rel=1e-9)
        assert a["destroyed"] == pytest.approx(b["destroyed"], rel=1e-9)
