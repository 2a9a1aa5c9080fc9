"""`bigain explain` over runs that `bigain predict` made, and the frequency responses that they stored."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from program import bigain

from bigain.commands.main import main
from bigain.runs.logs import read_records

QUICK = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
TRIALS = ["--model.trials", "[2,4]", "--model.keep", "[3,1]", "--data.images", "6", "--data.batch_size", "3"]
MEASURED = ["--trainer.callbacks+=bigain.callbacks.FrequencyResponse", "--trainer.callbacks.batches", "1"]


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    """Runs without compression, and of ToMe with and without measuring its frequency response."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["bigain"])
        for name, config, more in (("none", "none", []), ("plain", "tome", []), ("tome", "tome", MEASURED)):
            given = ["--config", f"demo_{config}.yaml", *QUICK, *TRIALS, *more, "--output", f"runs/{name}"]
            assert main(["predict", *given]) == 0
        yield root


def test_measuring_changes_no_bit_of_a_run():
    plain, measured = (read_records(Path("runs", name, "predictions")) for name in ("plain", "tome"))
    assert plain.keys() == measured.keys()
    for image_id, record in plain.items():
        ours = {**vars(measured[image_id]), "seconds": 0}
        assert ours == {**vars(record), "seconds": 0}
    assert not Path("runs/plain/frequency_response.json").exists()


def test_the_stored_response_is_of_the_first_batch():
    found = json.loads(Path("runs/tome/frequency_response.json").read_text())
    assert (found["batches"], found["images"]) == (1, 3)
    assert [site["name"] for site in found["sites"]] == [f"transformer_blocks.{i}" for i in range(4)]
    for site in found["sites"]:
        # 3 images, 2 trials of 16 classes and 2 more of 3: forwards of 8 rows, the last one of a stage filled up.
        assert sum(site["rows"]) == 96 + 24
        assert sum(site["modes"]) == 256
        energy = {kind: np.array(site[kind]) for kind in ("original", "compressed", "error")}
        assert all(values.shape == (5, 9) for values in energy.values())
        # By Cauchy and Schwarz, whatever the compressor does.
        a, b, e = (np.sqrt(energy[kind]) for kind in ("original", "compressed", "error"))
        assert (abs(a - b) <= e + 1e-9).all()
        assert (e <= a + b + 1e-9).all()
        assert site["kept"][8] < 1 < 1e3 * site["destroyed"][8]


def test_an_explanation_is_that_of_the_logs(tmp_path):
    found = bigain("explain", "runs/tome", "runs/plain", "--baseline", "runs/none", "--json", str(tmp_path / "x.json"))
    assert (found.returncode, found.stderr) == (0, "")
    assert "ToMe at ratio 0.5 keeps " in found.stdout
    one, other = json.loads((tmp_path / "x.json").read_text())["explanations"]
    assert one["margins"] == other["margins"]
    assert other["frequencies"] is None
    for run, side in (("none", "base"), ("tome", "run")):
        records = read_records(Path("runs", run, "predictions")).values()
        each = [_margins(record) for record in records]
        assert one["margins"][side]["mu"] == pytest.approx(np.mean(each), rel=1e-9)
        assert one["margins"][side]["sigma"] == pytest.approx(np.std(each), rel=1e-9)
        assert one["margins"][side]["error"] == pytest.approx(np.mean(np.mean(each, axis=1) <= 0))
    assert (one["margins"]["images"], one["margins"]["trials_per_image"]) == (6, 2)


def _margins(record):
    """Of one image on the trials that all 16 classes have, from its log."""
    errors = dict(zip(zip(record.classes, record.trials, strict=True), record.errors, strict=True))
    trials = [t for t in range(4) if all((c, t) in errors for c in range(16))]
    score = {c: sum(np.float64(errors[c, t]) for t in trials) for c in range(16) if c != record.label}
    rival = min(score, key=score.get)
    return [np.float64(np.float32(errors[rival, t])) - np.float32(errors[record.label, t]) for t in trials]


def test_the_figure_and_what_is_missing(tmp_path):
    shutil.copytree("runs/tome", tmp_path / "killed")
    (tmp_path / "killed/results.json").unlink()
    args = ["runs/tome", str(tmp_path / "killed"), "--baseline", "runs/none", "--output", str(tmp_path / "figures")]
    found = bigain("explain", *args)
    assert found.returncode == 1
    assert f"left out: {tmp_path / 'killed'} is not finished" in found.stdout
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"explain.png", "explain.svg"}
    found = bigain("explain", str(tmp_path / "killed"), "--baseline", "runs/none")
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_processes_measure_together():
    given = ["--config", "demo_tome.yaml", *QUICK, *TRIALS, "--trainer.callbacks+=bigain.callbacks.FrequencyResponse"]
    given += ["--model.trials", "[1]", "--model.keep", "[1]", "--data.images", "2", "--data.batch_size", "1"]
    both = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    found = bigain("predict", *given, *both, "--output", "two")
    assert found.returncode == 0, found.stderr
    assert main(["predict", *given, "--output", "one"]) == 0
    one, two = (json.loads(Path(name, "frequency_response.json").read_text()) for name in ("one", "two"))
    assert (one["images"], two["images"]) == (2, 2)
    for a, b in zip(one["sites"], two["sites"], strict=True):
        assert a["rows"] == b["rows"]
        assert a["kept"] == pytest.approx(b["kept"], rel=1e-9)
        assert a["destroyed"] == pytest.approx(b["destroyed"], rel=1e-9)


def test_a_generation_on_the_u_net_measures_its_keys():
    given = ["--config", "demo_unet_iekvd_generation.yaml", *QUICK, "--model.steps", "2", "--data.images", "2"]
    more = ["--trainer.callbacks+=bigain.callbacks.FrequencyResponse", "--output", "generated"]
    # Two images are too few for a distance.
    assert main(["predict", *given, *more]) == 1
    found = json.loads(Path("generated/frequency_response.json").read_text())
    assert found["images"] == 2
    assert {site["module"] for site in found["sites"]} == {"self_attn"}
    # A blend of nearest keys keeps little of what only a finer map can hold.
    assert all(site["kept"][8] < 0.5 < site["kept"][1] for site in found["sites"])
