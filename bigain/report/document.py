"""What a report says, as tables of text that every format writes in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bigain.report.comparison import INTERVALS, Comparison, p_text
from bigain.report.figures import Plot
from bigain.report.paper import PaperValue, paper_value
from bigain.report.paper import cell_of as paper_cell
from bigain.report.rows import Group, MainMetric, Measured, Row, main_metric, main_metrics, measured
from bigain.runs.names import is_proportion, method, signed, strength

NONE = "-"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: What it shows.
        headers: Of its columns.
        rows: Text, a list per row.
        numeric: Whether a column is of numbers, which are set flush right.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]


@dataclass(frozen=True)
class Section:
    """What a report says of one dataset and model.

    Attributes:
        title: Dataset and model.
        tables: Results, further metrics, comparisons.
        notes: What to know, a sentence each.
        sentences: What comparisons came to.
        plots: Its figures.
    """

    title: str
    tables: Sequence[Table]
    notes: Sequence[str]
    sentences: Sequence[str]
    plots: Sequence[Plot] = field(default=())


# Header, whether it is a column of numbers, text of a row.
_Column = tuple[str, bool, Callable[[Row], str]]


def section(group: Group, plots: Sequence[Plot]) -> Section:
    """What a report says of a group."""
    common = set.intersection(*(set(row.notes) for row in group.rows))
    tables = [_results(group, common), _further(group), _compared(group)]
    notes = [f"{note[:1].upper()}{note[1:]}." for note in sorted(common)]
    notes += [f"Not the same in all runs: {line}." for line in group.differing]
    notes += [f"† {note}." for note in _marks(group)]
    notes += [f"Not compared image by image: {reason}." for reason in group.refused]
    title = f"{group.dataset}, {group.model}"
    return Section(title, [table for table in tables if table.rows], notes, _sentences(group), plots)


def _sentences(group: Group) -> list[str]:
    found = []
    for one in group.comparisons:
        care = (
            f" Take care, they also differ in: {'; '.join(one.differs.forbidding)}." if one.differs.forbidding else ""
        )
        found.append(one.sentence() + care)
    return found


def _results(group: Group, common: set[str]) -> Table:
    columns: list[_Column] = [
        ("compressor", False, lambda row: row.method),
        ("setting", False, lambda row: _setting(row.strength)),
    ]
    for metric in main_metrics(group.rows):
        columns += _of_metric(metric, any(found.paper for row in group.rows if (found := metric.of(row))))
    columns += _costs(group)
    columns += [
        ("notes", False, lambda row: "; ".join(note for note in row.notes if note not in common)),
        ("runs", False, lambda row: ", ".join(str(run.path) for run in row.runs.values())),
    ]
    columns = [column for column in columns if any(column[2](row) not in ("", NONE) for row in group.rows)]
    rows = [[text(row) for _, _, text in columns] for row in group.rows]
    headers, numeric = [column[0] for column in columns], [column[1] for column in columns]
    return Table(f"Results: {group.dataset}, {group.model}", headers, rows, numeric)


def _of_metric(metric: MainMetric, printed: bool) -> list[_Column]:
    of, digits = metric.of, 1 if metric.task == "classification" else 2
    columns: list[_Column] = [
        (
            f"{metric.name} (%)" if is_proportion(metric.name) else metric.name,
            True,
            lambda row: _with_interval(of(row), digits),
        ),
        ("n", True, lambda row: _count(of(row))),
    ]
    if printed:
        columns.append(("paper", True, lambda row: _printed(of(row))))
        columns.append(("difference", True, lambda row: _difference(of(row), digits)))
    return columns


def _costs(group: Group) -> list[_Column]:
    return [
        ("GFLOPs", True, lambda row: f"{row.gflops:.4g}" if row.gflops < 1000 else f"{row.gflops:.1f}"),
        ("paper's GFLOPs", True, lambda row: _told(_cost(row, "gflops"))),
        ("less (%)", True, lambda row: NONE if row.reduction is None else f"{row.reduction:.1f}"),
        ("paper's less (%)", True, lambda row: _told(_cost(row, "gflops_reduction"))),
        ("s/image classified", True, lambda row: _seconds(row, "classification")),
        ("s/image generated", True, lambda row: _seconds(row, "generation")),
    ]


def _cost(row: Row, name: str) -> PaperValue | None:
    cells = (paper_cell(run) for run in row.runs.values())
    return next((paper_value(cell, name) for cell in cells if not isinstance(cell, str)), None)


def _seconds(row: Row, task: str) -> str:
    return f"{row.runs[task].seconds:#.3g}" if task in row.runs else NONE


def _setting(found: tuple[str, float] | None) -> str:
    return f"{found[0]} {found[1]:g}" if found else NONE


def _with_interval(found: Measured | None, digits: int) -> str:
    if found is None or found.value is None:
        return NONE
    interval = "" if found.low is None else f" ({found.low:.{digits}f} to {found.high:.{digits}f})"
    return f"{found.value:.{digits}f}{interval}"


def _count(found: Measured | None) -> str:
    return NONE if found is None or found.n is None else f"{found.n:,}"


def _told(paper: PaperValue | None) -> str:
    return paper.told() if paper else NONE


def _printed(found: Measured | None) -> str:
    return _told(found.paper if found else None)


def _difference(found: Measured | None, digits: int) -> str:
    if found is None or found.paper is None or found.value is None:
        return NONE
    return found.paper.differences(found.value, digits)


def _further(group: Group) -> Table:
    rows = []
    for row in group.rows:
        for run in row.runs.values():
            for one in measured(run):
                if one.metric != main_metric(run):
                    value, count = _with_interval(one, 2), _count(one)
                    printed = (_printed(one), _difference(one, 2))
                    metric = f"{one.metric} (%)" if is_proportion(one.metric) else one.metric
                    rows.append([row.method, _setting(row.strength), metric, value, count, *printed])
    headers = ["compressor", "setting", "metric", "value", "images", "paper", "difference"]
    numeric = [False, False, False, True, True, True, True]
    if all(row[-2] == NONE for row in rows):
        headers, numeric, rows = headers[:-2], numeric[:-2], [row[:-2] for row in rows]
    return Table(f"Further metrics: {group.dataset}, {group.model}", headers, rows, numeric)


def _compared(group: Group) -> Table:
    headers = ["compressor", "setting", "difference (points)", "95 % interval", "only it right", "only the base right"]
    headers += ["images", "p", "p corrected", "smallest detectable (points)", "run"]
    rows = [_comparison(one) for one in group.comparisons]
    base = f"{group.comparisons[0].names[1]}, {group.comparisons[0].base.path}" if group.comparisons else ""
    caption = f"Image by image against {base}: {group.dataset}, {group.model}"
    return Table(caption, headers, rows, [False, False, *[True] * 8, False])


def _comparison(one: Comparison) -> list[str]:
    counts = one.counts
    return [
        method(one.run.compressors) + (f" on {one.run.model}" if one.run.model != one.base.model else ""),
        _setting(strength(one.run.compressors)),
        signed(100 * counts.difference),
        f"{signed(100 * one.low)} to {signed(100 * one.high)}",
        f"{counts.first:,}",
        f"{counts.second:,}",
        f"{counts.n:,}",
        p_text(one.p),
        p_text(one.p_corrected),
        NONE if one.detectable is None else f"{100 * one.detectable:.1f}",
        str(one.run.path),
    ]


def _marks(group: Group) -> list[str]:
    """Why values of the paper are marked, once each, with the rows."""
    found: dict[str, list[str]] = {}
    for row in group.rows:
        papers: list[tuple[str, PaperValue | None]] = [
            (one.metric, one.paper) for run in row.runs.values() for one in measured(run)
        ]
        papers += [("GFLOPs", _cost(row, "gflops")), ("less", _cost(row, "gflops_reduction"))]
        for metric, paper in papers:
            if paper and paper.note:
                name = " ".join(part for part in (row.method, _setting(row.strength).strip(NONE), metric) if part)
                found.setdefault(paper.note, []).append(name)
    return [f"{note} ({', '.join(names)})" for note, names in found.items()]


def remarks(groups: Sequence[Group]) -> list[str]:
    """What to know of all tables."""
    told = [
        "Accuracies have 95 % Wilson intervals over images; distances have one where it could be computed.",
        "GFLOPs are those of one evaluation of the network, 2 per multiply-add; less: than without compression.",
    ]
    if any(group.comparisons for group in groups):
        told.append(
            "Image by image: exact two-sided McNemar test, corrected by Holm's method for all runs of the table; "
            f"{INTERVALS}; the smallest detectable difference is the one found in "
            "80 % of cases at so many discordant images."
        )
    if any(one.paper for group in groups for run in group.runs for one in measured(run)):
        told.append(
            "Difference: ours minus the paper's. One standard error is 0.65 points on the 3,669 images of Oxford-IIIT "
            "Pets and 1.1 points on 2,000 images of ImageNet-1K; several gains that the paper prints are smaller. "
            "Where settings are not the paper's there is no paper value. † marks values known to be inconsistent."
        )
    return told
