"""One check of every JSON file of a run, with one message."""

import json
import re
from pathlib import Path

import pytest
from synthetic_runs import change, classification

from bigain.errors import InputError
from bigain.runs.files import RUN_FILES, read_json
from bigain.runs.results import load_run, read_results, write_results
from bigain.runs.schema import Estimate, Results, Task


@pytest.mark.parametrize(
    ("expected", "content", "problem"),
    [
        (Task, "classification", None),
        (Task, "training", "its content is 'training', expected 'classification' or 'generation'"),
        (float, 3, None),
        (float, True, "its content is True, expected float"),
        (dict[str, Estimate], {"top1": {"value": 0.5, "low": None, "high": None}}, "top1.n is missing"),
        (
            dict[str, Estimate],
            {"top1": {"value": 1, "low": "x", "high": 1, "n": 3}},
            "top1.low is 'x', expected float",
        ),
        (list[dict[str, int]], [{"n": 1}, {"n": 0.5}], "[1].n is 0.5, expected int"),
        (Results, [], "its content is [], expected dict"),
    ],
    ids=str,
)
def test_the_first_problem_is_named(tmp_path, expected, content, problem):
    file = tmp_path / "file.json"
    file.write_text(json.dumps(content))
    if problem is None:
        assert read_json(file, expected) == content
    else:
        message = re.escape(f"{file} is damaged: {problem}")
        with pytest.raises(InputError, match=f"^{message}.*; run the command that wrote it again$"):
            read_json(file, expected)


def test_results_are_read_as_they_are_written(tmp_path):
    run = classification(tmp_path / "run", [True, False])
    results = read_results(run)
    write_results(run, results)
    assert load_run(run).results == results
    change(run, schema_version=2)
    with pytest.raises(InputError, match="has schema_version 2; this bigain reads 1"):
        read_results(run)


def test_the_documentation_lists_the_files_of_a_run():
    text = (Path(__file__).parents[2] / "docs/results.md").read_text(encoding="utf-8").partition("\n## `results")[0]
    documented = re.findall(r"`([^`]+)`", " ".join(line.split("|")[1] for line in text.splitlines() if "|" in line))
    for pattern in RUN_FILES:
        folder = pattern.partition("/")[0] + "/"
        listed = {name.replace("<r>", "*") for name in documented}
        assert pattern in listed or folder in listed, pattern
