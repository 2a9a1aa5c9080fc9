"""The content of a report: tables, notes and figures of each dataset and model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bigain.report.comparison import INTERVALS, Comparison, p_text
from bigain.report.figures import Plot
from bigain.report.paper import PaperValue
from bigain.report.rows import Group, Measured, main_metrics
from bigain.report.tables import Table
from bigain.runs.names import is_proportion, method, signed, strength

_NONE = "-"
# Header, alignment, cells.
_Column = tuple[str, str, Sequence[str]]


@dataclass(frozen=True)
class Section:
    """The part of a report on one dataset and model.

    Attributes:
        title: Dataset and model.
        tables: Results, further metrics, comparisons.
        notes: What a reader has to know, a sentence each.
        sentences: A sentence for each comparison.
        plots: The figures.
    """

    title: str
    tables: Sequence[Table]
    notes: Sequence[str]
    sentences: Sequence[str]
    plots: Sequence[Plot] = ()


def section(group: Group, plots: Sequence[Plot]) -> Section:
    """Return the section on a group of runs."""
    title = f"{group.dataset}, {group.model}"
    common = set.intersection(*(set(row.notes) for row in group.rows))
    tables = [_results(group, common, title), _further(group, title), _compared(group, title)]
    notes = [f"{note[:1].upper()}{note[1:]}." for note in sorted(common)]
    notes += [f"Not the same in all runs: {line}." for line in group.differing]
    notes += [f"† {note} ({', '.join(names)})." for note, names in _marked(group).items()]
    notes += [f"Not compared image by image: {reason}." for reason in group.refused]
    sentences = [" ".join([comparison.sentence(), *comparison.cautions]) for comparison in group.comparisons]
    return Section(title, [table for table in tables if table.rows], notes, sentences, plots)


def _results(group: Group, common: set[str], title: str) -> Table:
    rows = group.rows
    columns: list[_Column] = [
        ("compressor", "l", [row.method for row in rows]),
        ("setting", "l", [_setting(row.strength) for row in rows]),
    ]
    for name in main_metrics(rows):
        cells = [_cells(row.main.get(name), 1 if is_proportion(name) else 2) for row in rows]
        headers = (_title(name), "n", "paper", "difference")
        columns += [(header, "r", column) for header, column in zip(headers, zip(*cells, strict=True), strict=True)]
    gflops = [f"{row.gflops:.4g}" if row.gflops < 1000 else f"{row.gflops:.1f}" for row in rows]
    less = [_NONE if row.run.reduction is None else f"{row.run.reduction:.1f}" for row in rows]
    columns += [
        ("GFLOPs", "r", gflops),
        ("paper's GFLOPs", "r", [_paper(row.paper_costs.get("gflops")) for row in rows]),
        ("less (%)", "r", less),
        ("paper's less (%)", "r", [_paper(row.paper_costs.get("gflops_reduction")) for row in rows]),
    ]
    for task, header in (("classification", "s/image classified"), ("generation", "s/image generated")):
        columns.append((header, "r", [f"{row.runs[task].seconds:#.3g}" if task in row.runs else _NONE for row in rows]))
    columns += [
        ("notes", "l", ["; ".join(note for note in row.notes if note not in common) for row in rows]),
        ("runs", "l", [", ".join(str(run.path) for run in row.runs.values()) for row in rows]),
    ]
    return _table(columns, f"Results: {title}")


def _table(columns: Sequence[_Column], caption: str) -> Table:
    """Make a table of the columns that have any content."""
    headers, align, cells = zip(*(column for column in columns if {*column[2]} - {"", _NONE}), strict=True)
    return Table(headers, list(zip(*cells, strict=True)), "".join(align), caption)


def _further(group: Group, title: str) -> Table:
    headers = ["compressor", "setting", "metric", "value", "images", "paper", "difference"]
    rows = [
        (row.method, _setting(row.strength), _title(measured.metric), *_cells(measured, 2))
        for row in group.rows
        for found in row.metrics.values()
        for measured in found
        if not measured.main
    ]
    shown = len(headers) - 2 * all(row[-2] == _NONE for row in rows)
    return Table(headers[:shown], [row[:shown] for row in rows], "lllrrrr", f"Further metrics: {title}")


def _compared(group: Group, title: str) -> Table:
    headers = ["compressor", "setting", "difference (points)", "95 % interval", "only it right", "only the base right"]
    headers += ["images", "p", "p corrected", "smallest detectable (points)", "run"]
    base = f"{group.comparisons[0].names[1]}, {group.comparisons[0].base.path}" if group.comparisons else ""
    rows = [_comparison(comparison) for comparison in group.comparisons]
    return Table(headers, rows, "ll" + 8 * "r", f"Image by image against {base}: {title}")


def _comparison(comparison: Comparison) -> list[str]:
    counts, run = comparison.counts, comparison.run
    return [
        method(run.compressors) + (f" on {run.model}" if run.model != comparison.base.model else ""),
        _setting(strength(run.compressors)),
        signed(100 * counts.difference),
        f"{signed(100 * comparison.low)} to {signed(100 * comparison.high)}",
        f"{counts.first:,}",
        f"{counts.second:,}",
        f"{counts.n:,}",
        p_text(comparison.p),
        p_text(comparison.p_corrected),
        _NONE if comparison.detectable is None else f"{100 * comparison.detectable:.1f}",
        str(run.path),
    ]


def _title(metric: str) -> str:
    return f"{metric} (%)" if is_proportion(metric) else metric


def _setting(strength: tuple[str, float] | None) -> str:
    return f"{strength[0]} {strength[1]:g}" if strength else _NONE


def _cells(measured: Measured | None, digits: int) -> tuple[str, str, str, str]:
    """Value with interval, number of images, the paper's value and the difference from it."""
    if measured is None:
        return (_NONE, _NONE, _NONE, _NONE)
    value, paper = measured.value, measured.paper
    interval = "" if measured.low is None else f" ({measured.low:.{digits}f} to {measured.high:.{digits}f})"
    return (
        _NONE if value is None else f"{value:.{digits}f}{interval}",
        _NONE if measured.n is None else f"{measured.n:,}",
        _paper(paper),
        _NONE if paper is None or value is None else paper.differences(value, digits),
    )


def _paper(value: PaperValue | None) -> str:
    return value.text if value else _NONE


def _paper_values(group: Group) -> Iterator[tuple[str, PaperValue]]:
    """Yield every value of the paper in a group, with the name of its row and metric."""
    for row in group.rows:
        values = [(one.metric, one.paper) for found in row.metrics.values() for one in found]
        values += [
            (name, row.paper_costs.get(key)) for name, key in (("GFLOPs", "gflops"), ("less", "gflops_reduction"))
        ]
        for metric, paper in values:
            if paper:
                yield " ".join([row.method, *([_setting(row.strength)] if row.strength else []), metric]), paper


def _marked(group: Group) -> dict[str, list[str]]:
    """Return why values of the paper are marked, with their rows."""
    marked: dict[str, list[str]] = {}
    for name, paper in _paper_values(group):
        if paper.note:
            marked.setdefault(paper.note, []).append(name)
    return marked


def remarks(groups: Sequence[Group]) -> list[str]:
    """Return what a reader has to know about all tables."""
    remarks = [
        "Accuracies have 95 % Wilson intervals over images; distances have one where it could be computed.",
        "GFLOPs are those of one evaluation of the network, 2 per multiply-add; less: than without compression.",
    ]
    if any(group.comparisons for group in groups):
        remarks.append(
            "Image by image: exact two-sided McNemar test, corrected by Holm's method for all runs of the table; "
            f"{INTERVALS}; the smallest detectable difference is the one found in "
            "80 % of cases at so many discordant images."
        )
    if any(one.paper for group in groups for row in group.rows for found in row.metrics.values() for one in found):
        remarks.append(
            "Difference: ours minus the paper's. One standard error is 0.65 points on the 3,669 images of Oxford-IIIT "
            "Pets and 1.1 points on 2,000 images of ImageNet-1K; several gains that the paper prints are smaller. "
            "Where settings are not the paper's there is no paper value. † marks values known to be inconsistent."
        )
    return remarks
