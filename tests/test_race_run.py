"""A race by the real command line: its results, and that every command distinguishes it from stages."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from program import program_in
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigain.commands.main import main

QUICK = ["--data.images", "3", "--data.batch_size", "3", "--model.trials", "[2,4]", "--model.keep", "[2,1]"]
QUICK += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--inspect", "0"]
RACE = ["--model.race.error_level", "0.5"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A race and the stages on the same images."""
    folder = tmp_path_factory.mktemp("race")
    with program_in(folder):
        assert predict(*RACE, "--output", "race") == 0
        assert predict("--output", "stages") == 0
    return folder


@pytest.fixture(autouse=True)
def there(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sys, "argv", ["bigain"])


def predict(*args):
    return main(["predict", "--config", "demo_none.yaml", *QUICK, *args])


def results(run="race"):
    return json.loads(Path(run, "results.json").read_text())


def records(run="race"):
    return [json.loads(line) for line in Path(run, "predictions/rank-0.jsonl").read_text().splitlines()]


def test_results_have_the_evaluations_that_were_made():
    content, lines = results(), records()
    mean = sum(len(line["errors"]) for line in lines) / 3
    assert 32 <= mean < 64
    evaluations = content["evaluations"]
    assert (evaluations["per_image"], evaluations["planned_per_image"]) == (mean, 64)
    race = {"error_level": 0.5, "first_trials": 2, "look_every": 1, "trials": 4}
    protocol = content["protocol"]
    assert protocol["race"] == race
    assert [protocol[name] for name in ("stages", "keep", "budget")] == [None, None, None]
    assert results("stages")["protocol"]["race"] is None
    events = EventAccumulator("race/tensorboard")
    events.Reload()
    assert events.Scalars("evaluations/per_image")[0].value == pytest.approx(mean)


def test_a_race_continues_as_the_same_race_only(capsys):
    assert predict(*RACE, "--output", "race") == 0
    text = capsys.readouterr().out
    assert f"{results()['evaluations']['per_image']:.4g} per image in a race, at most 64" in text
    assert "3 images already done" in text
    for options, named in (([], "model.init_args.race"), (["--model.race.look_every", "2"], "race.error_level")):
        assert predict(*options, "--output", "race") == 2
        assert named in capsys.readouterr().err


def test_a_race_is_not_compared_with_stages_unless_asked_and_named_in_a_report(capsys):
    assert main(["compare", "race", "stages"]) == 2
    assert "protocol race" in capsys.readouterr().err
    assert main(["compare", "race", "stages", "--allow-differences"]) == 0
    assert "n = 3" in capsys.readouterr().out
    assert main(["report", "race", "stages", "--output", "report"]) == 0
    capsys.readouterr()
    text = Path("report/report.md").read_text()
    assert f"A race at error level 0.5, {results()['evaluations']['per_image']:.4g} evaluations per image" in text
    assert "## ShapeTextures, shapes_dit, race error_level 0.5" in text


def test_margins_are_explained_over_the_trials_that_all_classes_have(capsys):
    shared = [Counter(line["trials"]) for line in records()]
    trials = sum(count == 16 for each in shared for count in each.values())
    shutil.copytree("race", "again")
    assert main(["explain", "again", "--baseline", "race", "--bands", "1"]) == 0
    assert f"(n = 3 images, {trials} trials, {trials / 3:.3g} per image)" in capsys.readouterr().out


def test_a_dry_run_shows_the_upper_limit_of_a_race(capsys):
    own = "config: demo_none.yaml, dataset: shapes, method: none, set: {model.race.error_level: 0.05}"
    Path("race.yaml").write_text(f"backbone: shapes_dit\nruns:\n- {{{own}}}\n")
    assert main(["sweep", "race.yaml", "--dry-run", "--data.images", "7"]) == 0
    text = capsys.readouterr().out
    assert "<=320" in text
    assert "<= is the most that a race can need" in text


def test_a_bad_race_is_refused_in_one_line(capsys):
    assert predict("--model.race.levels", "2", "--output", "bad") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bigain: error: ")]
    assert "levels" in line
