"""`bigain report` and `bigain compare` over runs that `bigain predict` and `bigain evaluate` made."""

import csv
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
TRIALS = ["--model.trials", "[1,2]", "--model.keep", "[2,1]"]


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    """Runs with and without compression, one on fewer images, one of another seed, and one of both tasks."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["bigain"])
        few = [*QUICK, *TRIALS, "--data.images", "8"]
        assert main(["predict", "--config", "demo_none.yaml", *few, "--output", "runs/none"]) == 0
        assert main(["predict", "--config", "demo_lgtm.yaml", *few, "--output", "runs/lgtm"]) == 0
        assert main(["predict", "--config", "demo_tome.yaml", *few, "--output", "runs/tome", "--data.images", "5"]) == 0
        assert main(["predict", "--config", "demo_tome.yaml", *few, "--output", "runs/seed", "--seed", "3"]) == 0
        both = ["--classification.model.trials", "[1,2]", "--classification.model.keep", "[2,1]"]
        both += ["--classification.data.images", "8", "--generation.model.steps", "1", "--generation.data.images", "5"]
        assert main(["evaluate", "--config", "demo_iekvd_joint.yaml", *QUICK, *both, "--output", "runs/joint"]) == 0
        yield root


def right(run):
    """Which images the log of a run has right."""
    return {one.image_id: one.prediction == one.label for one in read_records(Path(run, "predictions")).values()}


def test_a_comparison_is_that_of_the_logs(tmp_path):
    found = bigain("compare", "runs/none", "runs/lgtm", "runs/joint", "--json", str(tmp_path / "found.json"))
    assert (found.returncode, found.stderr) == (0, "")
    rows = json.loads((tmp_path / "found.json").read_text())["comparisons"]
    assert [row["run"] for row in rows] == ["runs/lgtm", "runs/joint/classification"]
    base = right("runs/none")
    for row in rows:
        mine = right(row["run"])
        assert mine.keys() == base.keys()
        assert row["only_run_right"] == sum(mine[one] and not base[one] for one in base)
        assert row["only_base_right"] == sum(base[one] and not mine[one] for one in base)
        assert row["n"] == 8
    assert "LGTM at ratio 0.5" in found.stdout


def test_runs_of_other_images_or_seeds_are_refused():
    found = bigain("compare", "runs/none", "runs/tome", "runs/seed")
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1
    assert "images: 5 and 8, of which 5 are the same" in found.stderr
    assert "protocol seed 3 and 0" in found.stderr
    found = bigain("compare", "runs/none", "runs/tome", "--allow-differences")
    assert found.returncode == 0
    assert "n = 5" in found.stdout


def test_a_report_of_all(tmp_path):
    found = bigain("report", "runs", "--output", str(tmp_path / "report"))
    assert (found.returncode, found.stderr) == (0, "")
    with (tmp_path / "report/runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("none", "lgtm", "tome", "seed", "joint/classification"):
        value = next(float(row["value"]) for row in rows if row["run"] == f"runs/{name}" and row["metric"] == "top1")
        assert value == pytest.approx(100 * np.mean(list(right(f"runs/{name}").values())))
    text = (tmp_path / "report/report.md").read_text()
    assert "Embedded model: nothing in the paper compares." in text
    assert "frechet[shapes-features]" in text
    assert "runs/joint/classification, runs/joint/generation" in text
    assert "Not compared image by image: runs/seed and runs/none differ" in text
    assert {row["paper"] for row in rows} == {""}


def test_a_killed_run_is_named(tmp_path):
    left = tmp_path / "killed"
    left.mkdir()
    (left / "identity.json").write_text(Path("runs/lgtm/identity.json").read_text())
    found = bigain("report", "runs/lgtm", str(left), "--output", str(tmp_path / "report"))
    assert found.returncode == 1
    assert f"left out: {left} is not finished" in found.stdout


def test_a_run_of_python_code_has_no_settings(tmp_path):
    """It is compared by its results alone."""
    shutil.copytree("runs/lgtm", tmp_path / "python")
    (tmp_path / "python/identity.json").unlink()
    assert bigain("compare", "runs/none", str(tmp_path / "python")).returncode == 0
