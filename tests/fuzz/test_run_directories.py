"""Damaged run directories: every command refuses them by name or leaves them out, and no finished line is lost."""

import shutil
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import answer, damaged, forms, fuzzed, put

from bigain.runs.directory import own_files

COMMON = ["--data.batch_size", "2", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
COMMON += ["--trainer.logger", "false"]
CLASSIFY = ["predict", "--config", "demo_none.yaml", *COMMON, "--data.images", "2", "--model.trials", "[1]"]
CLASSIFY += ["--model.keep", "[1]"]
GENERATE = ["predict", "--config", "demo_none_generation.yaml", *COMMON, "--data.images", "4", "--model.steps", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs: two classifications and two generations."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        assert answer(*CLASSIFY, "--output", root / name)[0] == 0
    for name in ("g", "h"):
        assert answer(*GENERATE, "--output", root / name)[0] == 0
    return root


@pytest.fixture
def copy(runs, tmp_path_factory):
    """Gives a fresh copy of a run for every example."""

    def made(name):
        folder = tmp_path_factory.mktemp("copy") / name
        shutil.copytree(runs / name, folder)
        return folder

    return made


def damage(data, folder, *names):
    """Damage one of the files of a run."""
    file = folder / data.draw(st.sampled_from(names))
    put(file, data.draw(damaged(file.read_bytes()) | forms))
    return file


def logs(folder):
    return {path: path.read_bytes() for path in sorted(folder.glob("predictions/*.jsonl")) if path.is_file()}


@pytest.mark.parametrize("name", ["a", "g"])
def test_every_file_of_a_run_is_listed(runs, name):
    files = {path for path in (runs / name).rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert files == {*own_files(runs / name)}


@fuzzed(15)
@given(st.data())
def test_reports_and_comparisons(runs, copy, data):
    folder = copy("a")
    damage(data, folder, "results.json", "identity.json", "images.txt", "predictions/predictions.npz")
    before = logs(folder)
    output = folder.parent / "report"
    # Figures take most of the time of a report.
    with patch("bigain.report.document.draw", lambda groups, folder, samples: [[] for _ in groups]):
        status, told = answer("report", folder, runs / "b", "--output", output)
    assert status in (0, 1)
    assert str(runs / "b") in (output / "runs.csv").read_text()
    assert status == 0 or str(folder) in told
    for pair in ((runs / "b", folder), (folder, runs / "b")):
        status, told = answer("compare", *pair, "--json", folder.parent / "numbers.json")
        assert status == 0 or str(folder) in told
    assert logs(folder) == before


@fuzzed(12)
@given(st.data())
def test_score(runs, copy, data):
    folder, own = copy("h"), copy("g")
    file = damage(data, folder, "results.json", "images.txt", "samples/test/000001.png")
    before = logs(folder)
    for command in (("score", folder), ("score", own, "--against", folder)):
        status, told = answer(*command)
        assert status == 0 or str(folder) in told or file.name == "results.json"
    assert logs(folder) == before


FILES = ["predictions/rank-0.jsonl", "predictions/rank-0.jsonl", "results.json"]
CLASSIFICATION = ["identity.json", "predictions/classes.json", "predictions/model.json", "predictions/predictions.npz"]


@fuzzed(12)
@given(st.data())
def test_a_resumed_run_keeps_what_is_finished(copy, data):
    name, command, files = data.draw(
        st.sampled_from([("a", CLASSIFY, CLASSIFICATION), ("g", GENERATE, ["samples/test/000001.png"])])
    )
    folder = copy(name)
    file = damage(data, folder, *FILES, *files)
    before = logs(folder)
    status, told = answer(*command, "--output", folder)
    after = logs(folder)
    for path, content in before.items():
        assert after[path].startswith(content if status == 2 else content[: content.rfind(b"\n") + 1])
    assert status == 0 or str(file) in told or str(folder) in told
