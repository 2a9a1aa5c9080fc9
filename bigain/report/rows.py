"""Runs as the rows of tables: grouped by dataset and model, both tasks of a compressor side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigain.report.comparison import Comparison
from bigain.report.paper import Cell, PaperValue, cell_of, expected_images, paper_value
from bigain.runs.names import is_proportion, method, strength
from bigain.runs.results import Run


@dataclass(frozen=True)
class Measured:
    """A metric of a run, in the unit that tables show: percent for proportions.

    Attributes:
        metric: Its name.
        value: None where it could not be computed.
        low: Lower end of the 95 % interval; None without one.
        high: Upper end.
        n: Images behind it.
        paper: What the paper prints, where settings match.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    paper: PaperValue | None = None


@dataclass(frozen=True)
class Row:
    """A compressor with what it keeps in each task, and what it costs.

    Attributes:
        method: Classes of its compressors; `none` without.
        strength: `("ratio", 0.5)`, where there is one.
        runs: Of each task.
        gflops: Of one evaluation.
        reduction: Percent less than without compression; None where that is not known.
        notes: What to know of it, e.g. that the run is on fewer images.
    """

    method: str
    strength: tuple[str, float] | None
    runs: Mapping[str, Run]
    gflops: float
    reduction: float | None
    notes: tuple[str, ...]

    @property
    def accuracy(self) -> Measured | None:
        """Of the classification."""
        return _main(self.runs.get("classification"))

    @property
    def distance(self) -> Measured | None:
        """Of the generation."""
        return _main(self.runs.get("generation"))


@dataclass
class Group:
    """Runs of one dataset and model.

    Attributes:
        dataset: Its name.
        model: Its hub id or folder.
        rows: The table.
        base: The run that the others are compared with, image by image.
        comparisons: With the base.
        refused: Why other runs were not compared.
        differing: Settings that are not the same in all runs.
    """

    dataset: str
    model: str
    rows: list[Row]
    base: Run | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """All runs, row by row."""
        return [run for row in self.rows for run in row.runs.values()]


@dataclass(frozen=True)
class MainMetric:
    """What stands for the runs of a task in tables and figures. Distances of two protocols are two of them.

    Attributes:
        task: `classification` or `generation`.
        name: Of the metric.
    """

    task: str
    name: str

    def of(self, row: Row) -> Measured | None:
        """Its estimate in a row, if it is the row's."""
        found = row.accuracy if self.task == "classification" else row.distance
        return found if found and found.metric == self.name else None


def main_metrics(rows: Sequence[Row]) -> list[MainMetric]:
    """All accuracies, then all distances, that stand for a run of these rows."""
    named = {(task, name) for row in rows for task, run in row.runs.items() if (name := main_metric(run))}
    return [MainMetric(*one) for one in sorted(named)]


def measured(run: Run) -> list[Measured]:
    """Every metric of a run, the main one first."""
    cell = cell_of(run)
    names = sorted(run.metrics, key=lambda name: name != main_metric(run))
    return [_measured(run, cell, name) for name in names]


def main_metric(run: Run) -> str | None:
    """The metric that stands for a run: on COCO the one that the release printed."""
    return "top1_precision_all" if "top1_precision_all" in run.metrics else run.main_metric


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs by dataset and model, ascending; inside, by method and strength."""
    by_name: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_name.setdefault((run.dataset, run.model), []).append(run)
    return [Group(*name, _rows(members)) for name, members in sorted(by_name.items())]


def _main(run: Run | None) -> Measured | None:
    name = main_metric(run) if run else None
    return _measured(run, cell_of(run), name) if run and name else None


def _measured(run: Run, cell: Cell | str, name: str) -> Measured:
    scale = 100.0 if is_proportion(name) else 1.0
    estimate = run.metrics[name]
    value, low, high = (
        None if estimate.get(key) is None or not math.isfinite(estimate[key]) else scale * estimate[key]
        for key in ("value", "low", "high")
    )
    # Images without labels count as wrong in the paper.
    overruled = name == "top1_precision" and "top1_precision_all" in run.metrics
    paper = None if isinstance(cell, str) or overruled else paper_value(cell, name)
    return Measured(name, value, low, high, estimate.get("n"), paper)


def _rows(runs: Sequence[Run]) -> list[Row]:
    return sorted(map(_row, _joined(runs)), key=_order)


def _order(row: Row) -> tuple[bool, str, str, float, list[str]]:
    name, value = row.strength or ("", 0.0)
    return row.method != "none", row.method, name, value, [str(run.path) for run in row.runs.values()]


def _joined(runs: Sequence[Run]) -> list[dict[str, Run]]:
    """Both tasks of a compressor together: those of one `bigain evaluate`, or if there is exactly one run of each."""
    by_key: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        joint = str(run.path.parent) if (run.path.parent / "joint.json").is_file() else ""
        by_key.setdefault((joint, _compressor_key(run)), []).append(run)
    found: list[dict[str, Run]] = []
    for members in by_key.values():
        if len({run.task for run in members}) == len(members):
            found.append({run.task: run for run in sorted(members, key=lambda run: run.task)})
        else:
            found += [{run.task: run} for run in members]
    return found


def _compressor_key(run: Run) -> str:
    """Compressors without seed, and without IE-KVD's alpha, which differs between the tasks in the paper, too."""
    return json.dumps([[one["class"], _without(one["settings"])] for one in run.compressors], sort_keys=True)


def _without(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {key: _without(value) for key, value in settings.items() if key not in ("alpha", "seed")}


def _row(runs: Mapping[str, Run]) -> Row:
    first, *others = runs.values()
    names, notes = {task: method(run.compressors) for task, run in runs.items()}, _notes(runs)
    if len(set(names.values())) > 1:
        # IE-KVD's alpha may differ between the tasks.
        notes = (*notes, f"generation with {names['generation']}")
    notes = (*notes, *(f"{run.task}: {run.gflops:.4g} GFLOPs" for run in others if run.gflops != first.gflops))
    return Row(method(first.compressors), strength(first.compressors), runs, first.gflops, first.reduction, notes)


def _notes(runs: Mapping[str, Run]) -> tuple[str, ...]:
    """What to know of a row; of which task, unless it is true of both."""
    found = {task: _notes_of(run) for task, run in runs.items()}
    told: dict[str, list[str]] = {}
    for task, notes in found.items():
        for note in notes:
            told.setdefault(note, []).append(task)
    return tuple(note if len(tasks) == len(runs) else f"{tasks[0]}: {note}" for note, tasks in told.items())


def _notes_of(run: Run) -> list[str]:
    dataset, cell = run.results["dataset"], cell_of(run)
    notes = [cell] if isinstance(cell, str) else []
    race = run.results["protocol"].get("race")
    if isinstance(race, Mapping):
        told = f"{run.results['evaluations']['per_image']:.4g} evaluations per image"
        notes.append(f"a race at error level {race.get('error_level')}, {told}")
    if dataset["images"] < dataset["asked"]:
        notes.append(f"{dataset['images']:,} of {dataset['asked']:,} images")
    elif not notes and dataset["images"] != expected_images(run):
        notes.append(f"{dataset['images']:,} images, in the paper {expected_images(run):,}")
    if run.results.get("distance_missing"):
        notes.append(f"no distance: {run.results['distance_missing']}")
    return notes
