"""`bigain compare`: paired statistics of runs on the same images."""

from __future__ import annotations

import itertools
from pathlib import Path

from bigain.commands.parsing import Outcome
from bigain.errors import InputError
from bigain.report.comparison import ACCURACY, INTERVALS, PROBES, Measure, compare
from bigain.runs.files import write_json
from bigain.runs.results import find_runs, load_run


def compare_runs(
    base: Path,
    runs: list[Path],
    *,
    allow_differences: bool = False,
    json: Path | None = None,
) -> Outcome:
    """Compare runs with one of them, image by image.

    Classifications: exact McNemar test, paired interval of the accuracy difference, and the smallest difference that so
    many images could show. Generations: distances and means over images, such as PSNR, with the errors of paired
    differences, and the share of images with the right class, as for classifications. Features: accuracies of the
    linear probe and of nearest neighbours, as for classifications. P-values of several runs are corrected (Holm). Runs
    whose images, seed, protocol or versions differ are refused, with the differences.

    Args:
        base: Run directory that the others are compared with.
        runs: Run directories, or folders of run directories.
        allow_differences: Compare runs whose images, seed, protocol or versions differ, on the images that both have.
        json: File to write the numbers to.

    Returns:
        The statistics; complete if every directory that is named was read and every run in it compared.

    Raises:
        InputError: If nothing could be compared.
    """
    reference = load_run(base)
    members, left_out = find_runs(runs)
    # A folder may hold runs of other tasks.
    members = [run for run in members if run.task == reference.task or run.path in runs]
    # A folder of all runs contains the base, too.
    members = [run for run in members if run.path.resolve() != reference.path.resolve()] or members
    comparisons, refused = compare(reference, members, measure_of(reference.task), allow_differences)
    reasons = [*left_out.values(), *map(str, refused)]
    if not comparisons:
        raise InputError("; ".join(reasons) or f"there is nothing to compare {reference.path} with")
    if json is not None:
        rows = [comparison.row() for comparison in comparisons]
        write_json(json, {"comparisons": rows, "left_out": reasons}, "give --json another file")
    lines = [f"base: {comparisons[0].titles[1]}", ""]
    for _, group in itertools.groupby(comparisons, lambda comparison: comparison.run):
        of_run = list(group)
        lines += [comparison.sentence() for comparison in of_run]
        lines += [f"  {remark}" for remark in of_run[0].remarks]
    lines += ["", INTERVALS]
    if (tests := max(comparison.tests for comparison in comparisons)) > 1:
        lines.append(f"p-values are corrected for {tests} comparisons by Holm's method.")
    lines += [f"left out: {reason}" for reason in reasons]
    return Outcome("\n".join(lines) + "\n", not (refused or any(path in runs for path in left_out)))


def measure_of(task: str) -> Measure:
    """Return how runs of a task are compared."""
    if task != "generation":
        return ACCURACY if task == "classification" else PROBES
    # Imports torch.
    from bigain.commands.paired_generations import GENERATIONS

    return GENERATIONS
