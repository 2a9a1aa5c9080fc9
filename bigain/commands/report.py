"""`bigain report`: tables and plots of finished runs, beside the paper's numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bigain.commands.parsing import Outcome
from bigain.errors import InputError
from bigain.report.comparison import UnlikeError, compare
from bigain.report.document import comparisons_csv, latex, markdown, page, remarks, runs_csv, section
from bigain.report.figures import draw
from bigain.report.pairing import differing
from bigain.report.rows import Group, group_runs
from bigain.runs.files import write_text
from bigain.runs.results import Run, find_runs

_FIGURE = re.compile(r"(curves|pareto)-\d+-[a-z0-9-]+\.(png|svg)")
FORMATS = ("html", "md", "tex", "csv")
_TITLE = "Token compression of diffusion models"


def report(
    runs: list[Path],
    *,
    output: Path = Path("report"),
    formats: str = ",".join(FORMATS),
    base: Path | None = None,
    allow_differences: bool = False,
    partial: bool = False,
) -> Outcome:
    """Write tables and plots of finished runs: accuracy, distance and cost.

    The paper's numbers stand beside them where the settings are the paper's. Classification runs are compared image by
    image with the base run, by default the run without compression on the same dataset and model. Directories that hold
    no finished run are listed and left out.

    Args:
        runs: Run directories, or folders of run directories.
        output: Folder to write to.
        formats: Which of html,md,tex,csv to write. Figures are always drawn, as PNG and SVG.
        base: Run directory that all runs are compared with, image by image.
        allow_differences: Compare runs whose images, seed, protocol or versions differ, on the images that both have.
        partial: Include runs that have not finished all their images.

    Returns:
        The report's files and what was left out of it; complete if nothing was.

    Raises:
        InputError: If there is nothing to report, or it cannot be written.
    """
    finished, left_out = find_runs(runs, partial)
    if not finished:
        raise InputError(f"nothing to report: {'; '.join(left_out)}")
    reference = _base(base, finished, partial)
    groups = group_runs(finished)
    refused = [reason for group in groups for reason in _compare(group, reference, allow_differences)]
    try:
        written = _write(output, groups, left_out, set(formats.split(",")))
    except OSError as error:
        raise InputError(f"cannot write the report to {output}: {error}; choose another --output") from error
    lines = [f"left out: {reason}" for reason in left_out]
    lines += [f"not compared: {reason}" for reason in refused]
    others = sum(len(group.refused) for group in groups) - len(refused)
    if others:
        lines.append(f"not compared image by image for {others} more reason{'s' if others > 1 else ''}, see the report")
    compared = sum(len(group.comparisons) for group in groups)
    lines += [f"{len(finished)} runs, {compared} compared image by image", *map(str, written)]
    return Outcome("\n".join(lines) + "\n", not (left_out or refused))


def _base(path: Path | None, runs: Sequence[Run], partial: bool) -> Run | None:
    """The run to compare with, which need not be among those reported."""
    if path is None:
        return None
    found = [run for run in find_runs([path], partial)[0] if run.task == "classification"]
    if len(found) != 1:
        raise InputError(f"--base {path} holds {len(found)} finished classification runs; name the directory of one")
    return next((run for run in runs if run.path.resolve() == found[0].path.resolve()), found[0])


def _compare(group: Group, base: Run | None, allowed: bool) -> list[str]:
    """Compare the classification runs of a group with the base, and say which could not be.

    Without a base that was asked for, runs that are whole and differ in other settings are told in the report only.
    """
    group.differing += differing(group.runs)
    classified = [run for run in group.runs if run.task == "classification"]
    plain = [run for run in classified if not run.compressors]
    if base is None and len(plain) > 1 and len(classified) > len(plain):
        group.refused.append(f"{len(plain)} runs are without compression; name one with --base")
    start = base or (plain[0] if len(plain) == 1 else None)
    others = [run for run in classified if start is not None and run.path.resolve() != start.path.resolve()]
    if start is None or not others:
        return []
    try:
        group.comparisons, refused = compare(start, others, allowed)
    except InputError as error:
        refused = [error]
    group.refused += map(str, refused)
    return [str(error) for error in refused if base is not None or not isinstance(error, UnlikeError)]


def _write(output: Path, groups: Sequence[Group], left_out: Sequence[str], formats: set[str]) -> list[Path]:
    unknown = formats - set(FORMATS)
    if unknown:
        raise InputError(f"--formats: {', '.join(sorted(unknown))} is none of {', '.join(FORMATS)}")
    figures = output / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    plots = draw(groups, figures)
    sections = [section(group, drawn) for group, drawn in zip(groups, plots, strict=True)]
    told = remarks(groups)
    texts: dict[str, str] = {}
    if "html" in formats:
        texts["report.html"] = page(_TITLE, sections, told, left_out, figures)
    if "md" in formats:
        texts["report.md"] = markdown(_TITLE, sections, told, left_out)
    if "tex" in formats:
        texts["report.tex"] = latex(sections, left_out)
    if "csv" in formats:
        texts["runs.csv"] = runs_csv(groups)
        texts["comparisons.csv"] = comparisons_csv(groups)
    for name, text in texts.items():
        write_text(output / name, text)
    drawn_files = [figures / f"{plot.name}.{kind}" for drawn in plots for plot in drawn for kind in ("png", "svg")]
    # Of an earlier report in this folder: once all its files are written again, nothing shows them any more.
    if formats == {*FORMATS}:
        for left in {path for path in figures.iterdir() if _FIGURE.fullmatch(path.name)} - {*drawn_files}:
            left.unlink()
    return [*(output / name for name in texts), *drawn_files]
