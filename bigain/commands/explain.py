"""`bigain explain`: which frequencies a compressor destroyed, and whether that mattered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from bigain.commands.compare import write_json
from bigain.commands.parsing import Outcome
from bigain.errors import InputError
from bigain.report.comparison import compare
from bigain.report.explain.explanation import Explanation, explain, explanation_lines
from bigain.report.explain.figure import CAPTION, draw_explanations
from bigain.report.explain.margins import TIME, read_errors
from bigain.report.figures import Plot, plain_style, save
from bigain.runs.results import Run, classification_in, find_runs, load_run

_NOTES = (
    "margin: mean of error(best wrong class) - error(true class); deviation: of single margins over images and trials.",
    "r: deviation / margin, - where the margin is not positive. -> is the run.",
    "theorem: Theorem 1's bound on the error of the mean of so many trials, were they drawn independently.",
    "bound: Cantelli's, from the spread of the images' mean margins; what is wrong never exceeds it.",
    "wrong: images whose mean margin on these trials alone is not positive.",
)


def explain_runs(
    runs: list[Path],
    *,
    baseline: Path | None = None,
    bands: int = 5,
    json: Path | None = None,
    output: Path | None = None,
    allow_differences: bool = False,
    partial: bool = False,
) -> Outcome:
    """Explain from their stored errors why classification runs differ from a baseline.

    By timestep: the margin between the true class and its best rival, its deviation, their ratio r, Cantelli's bound
    and the bound of Theorem 1 of BiGain, beside the change of accuracy; and the frequency response of the compressor,
    where the run stored it. Runs whose images, seed, protocol or versions differ are refused, with the differences.

    Args:
        runs: Run directories, or folders of run directories.
        baseline: Run directory to compare with; by default RUN/baseline, from `bigain predict --baseline true`.
        bands: Number of bands of timesteps, of equal width.
        json: File to write the numbers to.
        output: Folder to draw the figure into, as PNG and SVG.
        allow_differences: Explain runs whose images, seed, protocol or versions differ, on the images that both have.
        partial: Include runs that have not finished all their images.

    Returns:
        The explanations; complete if all given runs were explained.

    Raises:
        InputError: If nothing could be explained, or a file cannot be written.
    """
    if not 1 <= bands <= TIME:
        raise InputError(f"--bands must be in 1..{TIME}, not {bands}")
    members, missing = find_runs(runs, partial)
    # In the output of `bigain evaluate`, the classification is meant; a folder of all runs contains the baseline, too.
    members = [run for run in members if run.task == "classification" or run.path in runs]
    by_base, alone = _by_baseline(baseline, members, runs)
    missing += alone
    explanations = []
    for path, compared in by_base.items():
        compared = [run for run in compared if run.path.resolve() != path.resolve() or run.path in runs]
        try:
            explained, refused = _explain(load_run(path, partial), compared, allow_differences, bands)
        except InputError as error:
            # The other baselines may be usable.
            missing.append(str(error))
            continue
        explanations += explained
        missing += refused
    if not explanations:
        raise InputError("; ".join(missing) or f"there is nothing to compare {', '.join(map(str, by_base))} with")
    text = _text(explanations, missing)
    if json is not None:
        rows = [explanation.row() for explanation in explanations]
        write_json(json, {"explanations": rows, "left_out": missing})
    if output is not None:
        text += _draw(output, explanations)
    return Outcome(text, not missing)


def _by_baseline(
    given: Path | None, runs: Sequence[Run], named: Sequence[Path]
) -> tuple[dict[Path, list[Run]], list[str]]:
    """Runs by the directory of what they are compared with, and why each other run has nothing."""
    if given is not None:
        return {classification_in(given): list(runs)}, []
    found: dict[Path, list[Run]] = {}
    alone = []
    for run in runs:
        if (run.path / "baseline").is_dir():
            found.setdefault(run.path / "baseline", []).append(run)
        # A folder of runs has their baselines in it, too.
        elif run.path.name != "baseline" or run.path in named:
            alone.append(
                f"{run.path} has no baseline in it; name the run without compression with --baseline RUN0, or run "
                "`bigain predict` with --baseline true"
            )
    return found, alone


def _explain(base: Run, runs: Sequence[Run], allowed: bool, bands: int) -> tuple[list[Explanation], list[str]]:
    """Explanations, and why each other run has none."""
    start = read_errors(base)
    compared, left_out = compare(base, runs, allowed)
    refused = [str(error) for error in left_out]
    found = []
    for comparison in compared:
        try:
            found.append(explain(comparison, start, bands))
        except InputError as error:
            refused.append(str(error))
    return found, refused


def _text(found: Sequence[Explanation], missing: Sequence[str]) -> str:
    lines: list[str] = []
    base = None
    for one in found:
        if base != one.comparison.base.path:
            base = one.comparison.base.path
            lines += [f"baseline: {one.comparison.names[1]}, {base}", ""]
        lines += [*explanation_lines(one), ""]
    lines += _NOTES
    lines += [f"left out: {reason}" for reason in missing]
    return "\n".join(lines) + "\n"


def _draw(folder: Path, found: Sequence[Explanation]) -> str:
    # They are in the order of their baselines.
    by_base = [[*group] for _, group in itertools.groupby(found, lambda one: one.comparison.base.path)]
    plots = [Plot(f"explain-{number}" if number > 1 else "explain", CAPTION) for number in range(1, len(by_base) + 1)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with plain_style():
            for plot, of_one in zip(plots, by_base, strict=True):
                save(draw_explanations(of_one), folder, plot)
    except OSError as error:
        raise InputError(f"cannot write the figure to {folder}: {error.strerror}; choose another --output") from error
    return "".join(f"{folder / plot.name}.{kind}\n" for plot in plots for kind in ("png", "svg"))
