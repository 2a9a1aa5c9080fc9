"""Finished runs are found in directories; everything else is left out, with the reason."""

import json
from pathlib import Path

from synthetic_runs import change, classification

from bigain.runs.results import find_runs


def test_finished_runs_are_found_once_and_others_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classification("runs/done", [True])
    classification("runs/part", [True], dataset__asked=3)
    classification("runs/damaged", [True], timing__seconds="long")
    for folder, name, content in (("runs/begun", "identity.json", {}), ("foreign", "results.json", {"accuracy": 1})):
        Path(folder).mkdir()
        Path(folder, name).write_text(json.dumps(content))
    Path("empty").mkdir()
    Path("file").touch()
    reasons = {
        "runs/begun": "runs/begun is not finished: it has no results.json",
        "runs/damaged": "runs/damaged/results.json is damaged: timing.seconds is",
        "runs/part": "runs/part is not finished: 1 of 3 images are done",
        "foreign": "foreign/results.json is not of bigain",
        "empty": "empty is not a run directory",
        "file": "file is not a directory",
        "nowhere": "nowhere does not exist",
    }
    runs, left_out = find_runs([Path(name) for name in ("runs", "runs/done", "foreign", "empty", "file", "nowhere")])
    assert [run.path for run in runs] == [Path("runs/done")]
    assert [*left_out] == [Path(name) for name in reasons]
    assert all(left_out[Path(name)].startswith(reason) for name, reason in reasons.items())
    # Images that could not be read are done.
    change("runs/part", dataset__skipped=[{"image_id": str(i), "reason": "broken"} for i in range(2)])
    assert len(find_runs([Path("runs")])[0]) == 2


def test_folders_that_cannot_be_read_and_circular_links_are_left_out(tmp_path, monkeypatch):
    run, closed, loop = (
        classification(tmp_path / "runs/run", [True, False]),
        tmp_path / "runs/closed",
        tmp_path / "loop",
    )
    closed.mkdir()
    loop.symlink_to("loop")
    is_file = Path.is_file

    def refused(path):
        if path.parent == closed:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    runs, left_out = find_runs([tmp_path / "runs", loop])
    assert [found.path for found in runs] == [run]
    assert left_out == {closed: f"{closed} cannot be read: Permission denied", loop: f"{loop} does not exist"}
