"""`bigain explain`: which frequencies a compressor destroyed, and whether that mattered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigain.commands.parsing import Outcome
from bigain.errors import InputError
from bigain.report.explain.explanation import Explanation, explain, explanation_lines
from bigain.report.explain.figure import draw_explanations
from bigain.report.explain.margins import TIME
from bigain.report.explain.weights import try_weights
from bigain.runs.files import write_json
from bigain.runs.results import find_runs, load_run


def explain_runs(
    runs: list[Path],
    *,
    baseline: Path | None = None,
    bands: int = 5,
    json: Path | None = None,
    output: Path | None = None,
    allow_differences: bool = False,
    weights: list[str] | None = None,
) -> Outcome:
    """Explain from their stored errors why classification runs differ from a baseline.

    By timestep: the margin between the true class and its best rival, its deviation, their ratio r, Cantelli's bound
    and the bound of Theorem 1 of BiGain, beside the change of accuracy; and the frequency response of the compressor,
    where the run stored it. Runs whose images, seed, protocol or versions differ are refused, with the differences.

    Args:
        runs: Run directories, or folders of run directories.
        baseline: Run directory without compression, which the runs are compared with.
        bands: Number of bands of timesteps, of equal width.
        json: File to write the numbers to.
        output: Folder to draw the figure into, as PNG, SVG and PDF.
        allow_differences: Explain runs whose images, seed, protocol or versions differ, on the images that both have.
        weights: Instead, try weights over timesteps on the errors of runs with `keep: null`: uniform, fitted (to other
            images), JSON files with one weight per timestep.

    Returns:
        The explanations; complete if every directory that is named was read and every run in it explained.

    Raises:
        InputError: If nothing could be explained, or a file cannot be written.
    """
    if not 1 <= bands <= TIME:
        raise InputError(f"--bands must be in 1..{TIME}, not {bands}")
    if weights and (baseline or output):
        raise InputError(
            "--weights compares with uniform weights and draws nothing; give no --baseline and no --output"
        )
    if not (baseline or weights):
        raise InputError("name the run without compression with --baseline RUN0, or weights to try with --weights")
    members, unread = find_runs(runs)
    # A folder may hold runs of other tasks.
    members = [run for run in members if run.task == "classification" or run.path in runs]
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    explanations: list[Explanation] = []
    refused: list[InputError] = []
    if weights:
        for run in members:
            try:
                row, text = try_weights(run, weights)
            except InputError as error:
                refused.append(error)
            else:
                rows.append(row)
                lines += text
    elif baseline:
        # `runs/*` names the baseline, too.
        compared = [run for run in members if run.path.resolve() != baseline.resolve()] or members
        explanations, refused = explain(load_run(baseline), compared, bands, allow_differences)
        rows, lines = [explanation.row() for explanation in explanations], explanation_lines(explanations)
    reasons = [*unread.values(), *map(str, refused)]
    if not rows:
        raise InputError("; ".join(reasons) or "there is no run to explain")
    if json is not None:
        write_json(json, {"explanations": rows, "left_out": reasons}, "give --json another file")
    lines += [f"left out: {reason}" for reason in reasons]
    if output is not None:
        lines += map(str, draw_explanations(explanations, output))
    return Outcome("\n".join(lines) + "\n", not (refused or any(path in runs for path in unread)))
