"""`bigain compare`: paired statistics of runs on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bigain.commands.arguments import Parser, parse, write_json
from bigain.errors import InputError
from bigain.report.comparison import INTERVALS, Comparison, compare
from bigain.runs.results import Run, classification_in, find_runs, load_run

_DESCRIPTION = (
    "Compare classification runs with one of them, image by image: exact McNemar test, paired interval of "
    "the accuracy difference, and the smallest difference that so many images could show. P-values of several runs "
    "are corrected (Holm). Runs whose images, seed, protocol or versions differ are refused, with what differs."
)


def compare_runs(args: Sequence[str]) -> tuple[str, bool]:
    """Run `bigain compare`.

    Args:
        args: Command line after `compare`.

    Returns:
        What came out, as text, and whether all given runs were compared.

    Raises:
        InputError: If nothing could be compared.
    """
    parser = Parser(prog="bigain compare", description=_DESCRIPTION)
    parser.add_argument("base", type=Path, metavar="A", help="run directory that the others are compared with")
    parser.add_argument("runs", type=Path, nargs="+", metavar="B", help="run directories")
    parser.add_argument(
        "--allow-differences",
        action="store_true",
        help="compare although images, seed, protocol or versions differ, on the images that both have",
    )
    parser.add_argument("--partial", action="store_true", help="also take runs that have not done all their images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file, too")
    given = parse(parser, args)
    base = _base(given.base, given.partial)
    runs, left_out = find_runs(given.runs, given.partial)
    # Of `bigain evaluate`, the classification is meant.
    runs = [run for run in runs if run.task == "classification" or run.path in given.runs]
    # A folder of all runs has the base in it, too.
    others = [run for run in runs if run.path.resolve() != base.path.resolve()]
    runs = others or runs
    found, refused = compare(base, runs, given.allow_differences)
    missing = left_out + [str(error) for error in refused]
    if not found:
        raise InputError("; ".join(missing) or f"there is nothing to compare {base.path} with")
    if given.json is not None:
        write_json(given.json, {"comparisons": [one.row() for one in found], "left_out": missing})
    return _text(base, found, missing), not missing


def _base(path: Path, partial: bool) -> Run:
    return load_run(classification_in(path), partial)


def _text(base: Run, found: Sequence[Comparison], missing: Sequence[str]) -> str:
    lines = [f"base: {found[0].names[1]}, {base.path}", ""]
    for one in found:
        lines += [one.sentence(), *(f"  {remark}" for remark in one.remarks)]
    lines += ["", f"{INTERVALS}; p-values are two-sided, of the exact McNemar test."]
    if len(found) > 1:
        lines.append(f"p-values are corrected for {len(found)} comparisons by Holm's method.")
    lines += [f"left out: {reason}" for reason in missing]
    return "\n".join(lines) + "\n"
