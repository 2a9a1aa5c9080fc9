"""Runs as rows of tables: grouped by dataset and model, the tasks of a compressor side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

from bigain.errors import InputError
from bigain.report.comparison import Comparison, Measure, compare
from bigain.report.pairing import Series, images_of, series
from bigain.report.paper import Cell, PaperValue, cell_of, expected_images, paper_value
from bigain.runs.names import NOT_OF_ONE_STEP, method, metric_title, strength
from bigain.runs.numbers import bias_text, counted, decimals, scaled
from bigain.runs.results import Run
from bigain.runs.schema import TASKS, Better

_COSTS = ("gflops", "gflops_reduction", "seconds_per_batch_of_4", "acceleration")
_FIDELITY = ("psnr", "ssim", "lpips", "dino_similarity", "cka", "cosine")


@dataclass(frozen=True)
class Measured:
    """A metric of a run over n images, in the unit of the tables: percent for proportions.

    Attributes:
        value: None if it could not be computed.
        low: Lower end of the 95 % interval to `high`; None without one.
        main: Whether this is the main metric of the run.
        paper: The paper's value, where the settings match.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    unit: str = ""
    better: Better | None = None
    main: bool = False
    paper: PaperValue | None = None

    @property
    def title(self) -> str:
        """The metric in words, with its protocol and unit: `FD (shapes-features)`."""
        return metric_title(self.metric, self.unit)

    @property
    def digits(self) -> int:
        """Decimals that the interval allows."""
        return decimals(self.value or 0.0, self.low, self.high)


@dataclass(frozen=True)
class Row:
    """A compressor with its run, its metrics, the main one first, and remarks in each task.

    `paper_costs` is what the paper prints as `gflops`, `gflops_reduction`, `seconds_per_batch_of_4`, `acceleration`.
    """

    runs: Mapping[str, Run]
    metrics: Mapping[str, Sequence[Measured]]
    paper_costs: Mapping[str, PaperValue]
    notes: Sequence[str]

    @property
    def run(self) -> Run:
        """The first run."""
        return next(iter(self.runs.values()))

    @property
    def method(self) -> str:
        """Classes of the compressors; `none` without compression."""
        return method(self.run.compressors)

    @property
    def strength(self) -> tuple[str, float] | None:
        """`("ratio", 0.5)`; None without compression."""
        return strength(self.run.compressors)

    @property
    def seconds_per_batch(self) -> float | None:
        """Seconds of the denoiser for 4 images at once; None if images were generated in other numbers."""
        run = self.runs.get("generation")
        denoiser = run and run.results["timing"].get("denoiser")
        # With guidance each image is two rows.
        if not run or not denoiser or denoiser["rows_per_forward"] != 8 or not denoiser["seconds_per_row"]:
            return None
        return 4 * float(denoiser["seconds_per_row"] * run.results["evaluations"]["per_image"])

    @property
    def accuracy_missing(self) -> str:
        """Why no accuracy can be measured; empty if one can."""
        return NOT_OF_ONE_STEP if any(compressor.get("generation_only") for compressor in self.run.compressors) else ""

    @property
    def all_metrics(self) -> list[Measured]:
        """The metrics of all runs."""
        return [*itertools.chain.from_iterable(self.metrics.values())]

    @cached_property
    def main(self) -> dict[str, Measured]:
        """Main accuracy and distance by name; a distance has a name for each protocol."""
        return {metric.metric: metric for metric in self.all_metrics if metric.main}

    def value(self, metric: str) -> float:
        """Return the value of a main metric, which this row has."""
        return self.main[metric].value or 0.0


@dataclass
class Group:
    """Runs of one dataset and model, and in each task of the same images and settings besides the compressor.

    Attributes:
        settings: What distinguishes the group from others of its dataset and model; empty if there is none.
        plain: Runs without compression of that dataset and model.
        comparisons: Runs against the base run of their task, image by image.
        refused: Why other runs were not compared.
    """

    dataset: str
    model: str
    settings: str
    plain: Sequence[Run]
    rows: Sequence[Row]
    comparisons: list[Comparison] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Dataset, model and settings."""
        return ", ".join(filter(None, (self.dataset, self.model, self.settings)))

    @property
    def runs(self) -> list[Run]:
        """All runs, row by row."""
        return [run for row in self.rows for run in row.runs.values()]

    def compare(self, base: Run | None, measure_of: Callable[[str], Measure], allowed: bool) -> None:
        """Add the comparisons of the runs of each task with a base run, and why others are not compared.

        Args:
            base: The base run of its task; in other tasks, and by default, it is the only run without compression.
            measure_of: How runs of a task are compared.
            allowed: Compare although images, seed, protocol or versions differ.
        """
        for task in TASKS:
            members = [run for run in self.runs if run.task == task]
            plain = [run for run in members if not run.compressors] or [run for run in self.plain if run.task == task]
            bases = [base] if base and base.task == task else plain
            if len(bases) > 1 and len(members) > len(bases):
                self.refused.append(f"{len(bases)} {task} runs are without compression; name one with --base")
            compared = [run for run in members if run.path.resolve() != bases[0].path.resolve()] if bases else []
            if len(bases) != 1 or not compared:
                continue
            try:
                comparisons, refused = compare(bases[0], compared, measure_of(task), allowed)
            except InputError as error:
                comparisons, refused = [], [error]
            self.comparisons += comparisons
            self.refused += map(str, refused)


def main_metrics(rows: Sequence[Row]) -> dict[str, Measured]:
    """Return the main metrics of rows, each from one row: accuracies, then distances."""
    metrics = {name: measured for row in rows for name, measured in row.main.items()}
    return dict(sorted(metrics.items(), key=lambda item: (item[1].better == "lower", item[0])))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs by dataset, model and settings, and make the rows of each group, the most expensive first.

    Numbers of different images, seeds, steps or protocols never share a group. A series of classifications and one of
    generations or features share a group if they belong together: see `_paired`.
    """
    groups = []
    for dataset, model in sorted({(run.dataset, run.model) for run in runs}):
        members = [run for run in runs if (run.dataset, run.model) == (dataset, model)]
        plain = [run for run in members if not run.compressors]
        several_seeds = len({_seed(run) for run in members}) > 1
        series_by_task = (series([run for run in members if run.task == task]) for task in TASKS)
        for texts, in_group in reduce(_paired, series_by_task):
            settings = ", ".join(dict.fromkeys(([f"seed {_seed(in_group[0])}"] if several_seeds else []) + texts))
            groups.append(Group(dataset, model, settings, plain, sorted(map(_row, _joined(in_group)), key=_order)))
    return groups


def _paired(earlier: Sequence[Series], later: Sequence[Series]) -> list[Series]:
    """Join series of a task to those of earlier tasks that belong together; the others are not joined.

    Two belong together if one `bigain evaluate` made runs of each, else if they have the same seed and images, else if
    each is the only one of its seed.
    """
    seeds = [[_seed(runs[0]) for _, runs in task_series] for task_series in (earlier, later)]
    criteria: list[Callable[[list[Run], list[Run]], object]] = [
        lambda a, b: _evaluations(a) & _evaluations(b),
        lambda a, b: (_seed(a[0]), images_of(a[0])) == (_seed(b[0]), images_of(b[0])),
        lambda a, b: _seed(a[0]) == _seed(b[0]) and all(task_seeds.count(_seed(a[0])) == 1 for task_seeds in seeds),
    ]
    unmatched_earlier, unmatched_later, joined = [*earlier], [*later], []
    for criterion, a, b in itertools.product(criteria, earlier, later):
        if a in unmatched_earlier and b in unmatched_later and criterion(a[1], b[1]):
            unmatched_earlier.remove(a)
            unmatched_later.remove(b)
            joined.append((a[0] + b[0], a[1] + b[1]))
    return joined + unmatched_earlier + unmatched_later


def _seed(run: Run) -> Any:
    return run.results["protocol"].get("seed")


def _evaluations(runs: Sequence[Run]) -> frozenset[Path]:
    """Return the directories of `bigain evaluate` that hold runs."""
    return frozenset(run.path.parent for run in runs if (run.path.parent / "joint.json").is_file())


def _order(row: Row) -> tuple[Any, ...]:
    paths = [run.path for run in row.runs.values()]
    return row.method != "none", -row.run.gflops, row.method, *(row.strength or ("", 0.0)), paths


def _joined(runs: Sequence[Run]) -> list[dict[str, Run]]:
    """Join the tasks of a compressor: the runs of one `bigain evaluate`, or the only run of each task."""
    joined: list[dict[str, Run]] = []
    remaining = list(runs)
    # Three tasks before two, and equal settings before those that differ between the tasks in the paper.
    for count, ignored in itertools.product((3, 2), (("seed",), ("seed", "alpha", "skip_zero"))):
        by_key: dict[tuple[frozenset[Path], str], list[Run]] = {}
        for run in remaining:
            compressors = [[c["class"], _without(c["settings"], ignored)] for c in run.compressors]
            by_key.setdefault((_evaluations([run]), json.dumps(compressors, sort_keys=True)), []).append(run)
        rows = [members for members in by_key.values() if len(members) == len({run.task for run in members}) == count]
        joined += [{run.task: run for run in sorted(row, key=lambda run: TASKS.index(run.task))} for row in rows]
        remaining = [run for members in by_key.values() if members not in rows for run in members]
    return joined + [{run.task: run} for run in remaining]


def _without(settings: Any, names: Sequence[str]) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {name: _without(value, names) for name, value in settings.items() if name not in names}


def _row(runs: Mapping[str, Run]) -> Row:
    cells = {task: cell_of(run) for task, run in runs.items()}
    metrics = {task: _metrics(run, cells[task]) for task, run in runs.items()}
    cell = next((cell for run in runs.values() if isinstance(cell := cell_of(run, costs=True), Cell)), None)
    costs = {name: value for name in _COSTS if cell and (value := paper_value(cell, name))}
    task_notes = {task: _notes(run, cells[task]) for task, run in runs.items()}
    notes = []
    for note in dict.fromkeys(itertools.chain.from_iterable(task_notes.values())):
        tasks = [task for task in runs if note in task_notes[task]]
        notes.append(note if len(tasks) == len(runs) else f"{tasks[0]}: {note}")
    first, *others = runs.values()
    for run in others:
        # IE-KVD's alpha may differ between the tasks.
        if method(run.compressors) != method(first.compressors):
            notes.append(f"{run.task} with {method(run.compressors)}")
        if run.gflops != first.gflops:
            notes.append(f"{run.task}: {run.gflops:.4g} GFLOPs")
    return Row(runs, metrics, costs, notes)


def _metrics(run: Run, cell: Cell | str) -> list[Measured]:
    # On COCO the release printed the precision over all images: those without labels count as wrong.
    main = "top1_precision_all" if "top1_precision_all" in run.metrics else run.main_metric
    measured = []
    for name, estimate in run.metrics.items():
        # Fidelities to different runs are not comparable.
        if name.startswith(_FIDELITY) and _fidelity_to(run):
            continue
        overruled = name == "top1_precision" and name != main
        paper = None if isinstance(cell, str) or overruled else paper_value(cell, name)
        fields = estimate["n"], estimate["unit"], estimate["better"]
        measured.append(Measured(name, *scaled(estimate), *fields, name == main, paper))
    return sorted(measured, key=lambda metric: not metric.main)


def _fidelity_to(run: Run) -> str:
    """Return the compressed run that a run's fidelity was measured against; empty if it was not compressed."""
    other = run.results.get("fidelity_to")
    return str(other["run"]) if other and other["compressors"] else ""


def _notes(run: Run, cell: Cell | str) -> list[str]:
    dataset, protocol = run.results["dataset"], run.results["protocol"]
    notes = [cell] if isinstance(cell, str) else []
    if protocol.get("race"):
        level, evaluations = protocol["race"]["error_level"], run.results["evaluations"]["per_image"]
        notes.append(f"a race at error level {level}, {evaluations:.4g} evaluations per image")
    if dataset["images"] < dataset["asked"]:
        notes.append(f"{dataset['images']:,} of {dataset['asked']:,} images")
    elif not notes and dataset["images"] != expected_images(run):
        notes.append(f"{counted(dataset['images'], 'image')}, in the paper {expected_images(run):,}")
    if other := _fidelity_to(run):
        notes.append(f"its fidelity is to a compressed run ({other}) and is not shown")
    if run.results.get("distance_missing"):
        notes.append(f"no distance: {run.results['distance_missing']}")
    return notes + [f"{metric_title(name)}: {text}" for name, x in run.metrics.items() if (text := bias_text(x))]
