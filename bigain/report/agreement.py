"""What is not the same in all runs of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bigain.report.pairing import circumstances, conditions
from bigain.runs.results import TASKS, Run

_NAMED = 3


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings besides the compressor that differ between runs of one task, a line each, with the runs."""
    return [line for task in TASKS for line in _of_task(task, [run for run in runs if run.task == task])]


def _of_task(task: str, runs: Sequence[Run]) -> list[str]:
    found = [{**conditions(run), **circumstances(run), "images": _images(run)} for run in runs]
    names = sorted({name for one in found for name in one})
    lines = []
    for name in names:
        values: dict[str, list[Run]] = {}
        for run, one in zip(runs, found, strict=True):
            values.setdefault(str(one.get(name)), []).append(run)
        if len(values) > 1:
            lines.append(f"{task}: {name} is {', '.join(_told(value, held) for value, held in values.items())}")
    return lines


def _told(value: str, runs: Sequence[Run]) -> str:
    where = ", ".join(str(run.path) for run in runs) if len(runs) <= _NAMED else f"{len(runs)} runs"
    return f"{value} ({where})"


def _images(run: Run) -> str:
    """How many images, and a hash that tells other images from the same."""
    count = run.results["dataset"]["images"]
    try:
        lines = (run.path / "images.txt").read_bytes().split(b"\n")
    except OSError:
        return f"{count:,}"
    return f"{count:,} ({hashlib.sha256(b''.join(sorted(lines))).hexdigest()[:8]})"
