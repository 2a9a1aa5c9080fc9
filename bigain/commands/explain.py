"""`bigain explain`: which frequencies a compressor destroyed, and whether that mattered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from bigain.commands.arguments import Parser, parse, write_json
from bigain.errors import InputError
from bigain.report.comparison import compare
from bigain.report.explain.explanation import Explanation, explain
from bigain.report.explain.figure import CAPTION, draw_explanations
from bigain.report.explain.margins import TIME, read_errors
from bigain.report.explain.text import explanation_lines
from bigain.report.figures import Plot, plain_style, save
from bigain.runs.results import Run, classification_in, find_runs, load_run

_DESCRIPTION = (
    "Tell why classification runs differ from a baseline, from their stored errors: the margin between the true class "
    "and its best rival, its deviation, their ratio r, Cantelli's bound and what Theorem 1 of BiGain says of it, by "
    "timestep, beside the change of accuracy; and the frequency response of the compressor, where the run stored it. "
    "Runs whose images, seed, protocol or versions differ are refused, with what differs."
)
_NOTES = (
    "margin: mean of error(best wrong class) - error(true class); deviation: of single margins over images and trials.",
    "r: deviation / margin, - where the margin is not positive. -> is the run.",
    "theorem: Theorem 1's bound on the error of the mean of so many trials, were they drawn independently.",
    "bound: Cantelli's, from the spread of the images' mean margins; what is wrong never exceeds it.",
    "wrong: images whose mean margin on these trials alone is not positive.",
)


def explain_runs(args: Sequence[str]) -> tuple[str, bool]:
    """Run `bigain explain`.

    Args:
        args: Command line after `explain`.

    Returns:
        What came out, as text, and whether all given runs were explained.

    Raises:
        InputError: If nothing could be explained, or a file cannot be written.
    """
    given = parse(_parser(), args)
    if not 1 <= given.bands <= TIME:
        raise InputError(f"--bands must be in 1..{TIME}, not {given.bands}")
    runs, missing = find_runs(given.runs, given.partial)
    # Of `bigain evaluate`, the classification is meant; a folder of all runs has the baseline in it, too.
    runs = [run for run in runs if run.task == "classification" or run.path in given.runs]
    by_base, alone = _by_baseline(given.baseline, runs, given.runs)
    missing += alone
    found = []
    for path, members in by_base.items():
        members = [run for run in members if run.path.resolve() != path.resolve() or run.path in given.runs]
        try:
            base = load_run(path, given.partial)
            explained, refused = _explain(base, members, given.allow_differences, given.bands)
        except InputError as error:
            # Of several baselines, the others may be whole.
            missing.append(str(error))
            continue
        found += explained
        missing += refused
    if not found:
        raise InputError("; ".join(missing) or f"there is nothing to compare {', '.join(map(str, by_base))} with")
    text = _text(found, missing)
    if given.json is not None:
        write_json(given.json, {"explanations": [one.row() for one in found], "left_out": missing})
    if given.output is not None:
        text += _draw(given.output, found)
    return text, not missing


def _parser() -> Parser:
    parser = Parser(prog="bigain explain", description=_DESCRIPTION)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories, or folders of such")
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN0",
        help="run directory to compare with; default: RUN/baseline, which `bigain predict --baseline true` makes",
    )
    parser.add_argument("--bands", type=int, default=5, help="bands of timesteps of equal width; default: 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file, too")
    parser.add_argument("--output", type=Path, metavar="DIR", help="draw the figure, as PNG and SVG, into a folder")
    parser.add_argument(
        "--allow-differences",
        action="store_true",
        help="explain although images, seed, protocol or versions differ, on the images that both have",
    )
    parser.add_argument("--partial", action="store_true", help="also take runs that have not done all their images")
    return parser


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
