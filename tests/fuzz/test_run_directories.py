"""Damaged run directories: every command refuses them by name or leaves them out, and no finished line is lost."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import FORMS, answer, damaged, damaged_json, forms, fuzzed, put

COMMON = ["--data.batch_size", "2", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
COMMON += ["--trainer.logger", "false"]
CLASSIFY = ["predict", "--config", "demo_none.yaml", *COMMON, "--data.images", "2", "--model.trials", "[1]"]
CLASSIFY += ["--model.keep", "[1]"]
GENERATE = ["predict", "--config", "demo_none_generation.yaml", *COMMON, "--data.images", "4", "--model.steps", "1"]
JSON = ("results.json", "identity.json", "predictions/classes.json", "predictions/model.json")


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


def damage_of(content, name):
    if name.endswith(".jsonl"):
        first, *others = content.splitlines(keepends=True)
        return damaged(content) | forms | damaged_json(first).map(lambda line: line + b"\n" + b"".join(others))
    return (damaged_json(content) if name in JSON else damaged(content)) | forms


def damage(data, folder, *names):
    """Damage one of the files of a run."""
    file = folder / data.draw(st.sampled_from(names))
    put(file, data.draw(damage_of(file.read_bytes(), str(file.relative_to(folder)))))
    return file


def logs(folder):
    return {path: path.read_bytes() for path in sorted(folder.glob("predictions/*.jsonl")) if path.is_file()}


def whole_lines(content):
    return content[: content.rfind(b"\n") + 1]


@fuzzed(40)
@given(st.data())
def test_report(runs, copy, data):
    folder = copy(data.draw(st.sampled_from(["a", "g"])))
    damage(data, folder, "results.json", "results.json", "identity.json", "images.txt")
    before = logs(folder)
    output = folder.parent / "report"
    status, told = answer("report", folder, runs / "b", "--formats", "html,md,tex,csv", "--output", output)
    assert status in (0, 1)
    assert str(runs / "b") in (output / "runs.csv").read_text()
    assert status == 0 or str(folder) in told
    assert logs(folder) == before


@fuzzed(100)
@given(st.data())
def test_compare(runs, copy, data):
    folder = copy("a")
    damage(data, folder, "results.json", "identity.json", "predictions/predictions.npz")
    status, told = answer("compare", runs / "b", folder, "--json", folder.parent / "numbers.json")
    assert status == 0 or str(folder) in told
    status, told = answer("compare", folder, runs / "b")
    assert status == 0 or str(folder) in told


@pytest.fixture(scope="module")
def columns(runs):
    with np.load(runs / "a" / "predictions" / "predictions.npz") as file:
        return dict(file)


ODD_ARRAYS = [
    np.array(0),
    np.zeros(0),
    np.array([np.nan, np.inf]),
    np.array([10**18, -(10**18)]),
    np.array(["a", "b"]),
    np.array([b"a", b"b"]),
    np.zeros((2, 3), np.bool_),
    np.zeros((2, 2, 2)),
    np.array([1 + 2j, 3]),
    np.array(["2020-01-01", "NaT"], "datetime64[D]"),
    np.array([(1, 2.0), (3, 4.0)], dtype=[("x", int), ("y", float)]),
]


@fuzzed(80)
@given(st.sampled_from(["image_id", "label", "prediction"]), st.sampled_from(ODD_ARRAYS), st.booleans())
def test_compare_with_other_columns(runs, copy, columns, name, array, absent):
    folder = copy("a")
    changed = {key: value for key, value in columns.items() if key != name} | ({} if absent else {name: array})
    file = io.BytesIO()
    np.savez(file, **changed)
    put(folder / "predictions" / "predictions.npz", file.getvalue())
    status, told = answer("compare", runs / "b", folder)
    assert status == 0 or str(folder) in told


@fuzzed(60)
@given(st.data())
def test_score(copy, data):
    folder = copy("g")
    names = ["results.json", "results.json", "images.txt", "samples/test/000001.png"]
    file = damage(data, folder, *names)
    before = logs(folder)
    status, told = answer("score", folder)
    assert status == 0 or str(folder) in told or file.name == "results.json"
    assert logs(folder) == before


@fuzzed(40)
@given(st.data())
def test_score_against_another_run(runs, copy, data):
    folder = copy("h")
    damage(data, folder, "results.json", "images.txt", "samples/test/000001.png")
    own = copy("g")
    status, told = answer("score", own, "--against", folder)
    assert status == 0 or str(folder) in told


@fuzzed(14)
@given(st.data())
def test_a_run_that_goes_on_keeps_what_is_finished(copy, data):
    folder = copy("a")
    names = ["predictions/rank-0.jsonl"] * 3 + ["identity.json"] * 2
    names += ["predictions/classes.json", "predictions/model.json", "predictions/predictions.npz", "results.json"]
    names += ["config.yaml", "images.txt"]
    file = damage(data, folder, *names)
    before = logs(folder)
    status, told = answer(*CLASSIFY, "--output", folder)
    after = logs(folder)
    for path, content in before.items():
        assert after[path].startswith(content if status == 2 else whole_lines(content))
    assert status == 0 or str(file) in told or str(folder) in told


@fuzzed(8)
@given(st.data())
def test_a_generation_that_goes_on_keeps_what_is_finished(copy, data):
    folder = copy("g")
    file = damage(data, folder, "predictions/rank-0.jsonl", "samples/test/000001.png")
    before = logs(folder)
    status, told = answer(*GENERATE, "--output", folder)
    after = logs(folder)
    for path, content in before.items():
        assert after[path].startswith(content if status == 2 else whole_lines(content))
    assert status == 0 or str(file) in told or str(folder) in told


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", ["", "predictions", "samples", "samples/test"])
def test_folders_that_are_something_else(copy, name, form):
    folder = copy("g")
    put(folder / name, form)
    report = ["report", folder, "--output", folder.parent / "report"]
    for command in (["score", folder], report, [*GENERATE, "--output", folder]):
        status, told = answer(*command)
        assert status == 0 or str(folder) in told
    put(Path(f"{folder}.file"), b"x")
    assert answer(*GENERATE, "--output", f"{folder}.file")[0] == 2
