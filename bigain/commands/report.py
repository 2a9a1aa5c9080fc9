"""`bigain report`: tables and plots of finished runs, beside the paper's numbers."""

from __future__ import annotations

from pathlib import Path

from bigain.commands.compare import measure_of
from bigain.commands.parsing import Outcome
from bigain.errors import InputError
from bigain.report.document import write_report
from bigain.report.rows import group_runs
from bigain.runs.numbers import counted
from bigain.runs.results import find_runs, load_run, read_ids


def report(
    runs: list[Path],
    *,
    output: Path = Path("report"),
    base: Path | None = None,
    allow_differences: bool = False,
    samples: list[str] | None = None,
) -> Outcome:
    """Write tables and plots of finished runs: accuracy, distance and cost.

    The paper's numbers stand beside them where the settings are the paper's. The runs of a task are compared image by
    image with the base run, by default the run without compression on the same dataset and model. Directories that hold
    no finished run are listed and left out.

    Args:
        runs: Run directories, or folders of run directories.
        output: Folder to write to.
        base: Run directory that all runs of its task are compared with, image by image.
        allow_differences: Compare runs whose images, seed, protocol or versions differ, on the images that both have.
        samples: Ids of the generated images to show side by side, with their differences; by default the first ones.

    Returns:
        The report's files and what was left out of it; complete if no directory was that is named.

    Raises:
        InputError: If there is nothing to report, or it cannot be written.
    """
    finished, left_out = find_runs(runs)
    if not finished:
        raise InputError(f"nothing to report: {'; '.join(left_out.values())}")
    ids = {image_id for run in finished if samples and run.task == "generation" for image_id in read_ids(run.path)}
    if unknown := [image_id for image_id in samples or () if image_id not in ids]:
        raise InputError(f"--samples {unknown[0]}: no generation here has this image; ids are in each run's images.txt")
    reference = load_run(base) if base else None
    groups = group_runs(finished)
    for group in groups:
        group.compare(reference, measure_of, allow_differences)
    files = write_report(output, groups, [*left_out.values()], samples or ())
    lines = [f"left out: {reason}" for reason in left_out.values()]
    lines += [f"not compared image by image: {reason}" for group in groups for reason in group.refused]
    compared = {comparison.run.path for group in groups for comparison in group.comparisons}
    lines += [f"{counted(len(finished), 'run')}, {len(compared)} compared image by image", *map(str, files)]
    return Outcome("\n".join(lines) + "\n", not any(path in runs for path in left_out))
