"""The files of a report: Markdown, LaTeX, CSV and one HTML page."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from bigain.errors import InputError
from bigain.report.comparison import COLUMNS, INTERVALS, Comparison, p_text
from bigain.report.figures import KINDS, Plot, draw
from bigain.report.paper import PaperValue
from bigain.report.rows import Group, Measured, Row, main_metrics
from bigain.report.tables import CONTROL, Table, latex_text, markdown_text
from bigain.runs.files import write_csv, write_text
from bigain.runs.names import method, metric_title, strength
from bigain.runs.numbers import signed, with_interval
from bigain.runs.schema import TASKS, Better

_TITLE = "Token compression of diffusion models"
_NONE = "-"
_OMITTED_IN_LATEX = ("notes", "runs", "run")
_FIT = r"\begin{adjustbox}{max width=\textwidth, max totalheight=0.8\textheight}"
_LEFT_ALIGNED = ("compressor", "setting", "metric", *_OMITTED_IN_LATEX)
# The cells of a row, each with the header of its column.
_Cells = list[tuple[str, str]]


class _Section(NamedTuple):
    """The part of a report on one group of runs; `sentences` describe the comparisons."""

    title: str
    tables: Sequence[Table]
    notes: Sequence[str]
    sentences: Sequence[str]
    plots: Sequence[Plot]


def write_report(
    output: Path, groups: Sequence[Group], left_out: Sequence[str], samples: Sequence[str] = ()
) -> list[Path]:
    """Write a report and its figures into a folder, and return its files.

    `left_out` are the reasons for directories that are not in it; `samples` the images to show, or the first ones.

    Raises:
        InputError: If a file cannot be written.
    """
    figures = output / "figures"
    names = ("report.html", "report.md", "report.tex", "runs.csv", "comparisons.csv")
    page, markdown, latex, runs, comparisons = written = [output / name for name in names]
    try:
        figures.mkdir(parents=True, exist_ok=True)
        plots = draw(groups, figures, samples)
        sections = [_section(group, group_plots) for group, group_plots in zip(groups, plots, strict=True)]
        content = _remarks(groups), sections, left_out
        write_text(page, _page(*content, figures))
        write_text(markdown, _markdown(*content))
        write_text(latex, _latex(*content))
        run_rows = run_lines(groups)
        write_csv(runs, list(run_rows[0]), run_rows)
        comparison_rows = [comparison.row() for group in groups for comparison in group.comparisons]
        for row in comparison_rows:
            row |= {key: "; ".join(row[key]) for key in ("differs", "also_differs")}
        write_csv(comparisons, list(COLUMNS), comparison_rows)
        drawn = [figures / f"{plot.name}.{kind}" for group_plots in plots for plot in group_plots for kind in KINDS]
    except OSError as error:
        raise InputError(f"cannot write the report to {output}: {error}; choose another --output") from error
    return [*written, *drawn]


def _section(group: Group, plots: Sequence[Plot]) -> _Section:
    title, best = group.title, _best(group)
    common = set.intersection(*(set(row.notes) for row in group.rows))
    metrics = main_metrics(group.rows)
    plain_seconds = next((row.seconds_per_batch for row in group.rows if not row.run.compressors), None)
    tables = [
        _table([_result(row, metrics, common, best, plain_seconds) for row in group.rows], f"Results: {title}"),
        *(_table(_further_metrics(group, task, best), f"Further metrics of {task}: {title}") for task in TASKS),
    ]
    for base_title, comparisons in itertools.groupby(group.comparisons, lambda comparison: comparison.titles[1]):
        tables.append(_table(list(map(_comparison, comparisons)), f"Image by image against {base_title}: {title}"))
    notes = [f"{note[:1].upper()}{note[1:]}." for note in sorted(common)]
    notes += [f"† {note} ({', '.join(names)})." for note, names in _paper_notes(group).items()]
    notes += [f"Not compared image by image: {reason}." for reason in group.refused]
    sentences = [" ".join([comparison.sentence(), *comparison.remarks]) for comparison in group.comparisons]
    return _Section(title, [table for table in tables if table.rows], notes, sentences, plots)


def _table(rows: Sequence[_Cells], caption: str) -> Table:
    """Return a table without the columns that have no content."""
    shown = [i for i, column in enumerate(zip(*rows, strict=True)) if {text for _, text in column} - {"", _NONE}]
    headers = [rows[0][i][0] for i in shown]
    texts = [[row[i][1] for i in shown] for row in rows]
    return Table(headers, texts, "".join("l" if header in _LEFT_ALIGNED else "r" for header in headers), caption)


def _best(group: Group) -> dict[str, float]:
    """Return the best value of each metric where there are several compressed rows to choose from."""
    values: dict[tuple[str, Better], list[float]] = {}
    for measured in (measured for row in group.rows if row.run.compressors for measured in row.all_metrics):
        if measured.better is not None and measured.value is not None:
            values.setdefault((measured.metric, measured.better), []).append(measured.value)
    best = {"lower": min, "higher": max}
    return {name: best[better](candidates) for (name, better), candidates in values.items() if len(candidates) > 1}


def _further_metrics(group: Group, task: str, best: Mapping[str, float]) -> list[_Cells]:
    """Return a table of the metrics that are not main ones, a column for each; empty if there are none."""
    rows = [row for row in group.rows if task in row.runs]
    measured = [{metric.metric: metric for metric in row.metrics[task] if not metric.main} for row in rows]
    titles = {name: metric.title for run_metrics in measured for name, metric in run_metrics.items()}
    table = []
    for row, run_metrics in zip(rows, measured, strict=True):
        cells = _compressor(row.method, row.strength)
        for name, title in titles.items():
            header, _, *texts = _cells(title, run_metrics.get(name), best if row.run.compressors else {})
            cells += [header, *texts]
        counts = dict.fromkeys(f"{metric.n:,}" for metric in run_metrics.values())
        table.append([*cells, ("n", " / ".join(counts)), ("run", str(row.runs[task].path))])
    return table if titles else []


def _result(
    row: Row, metrics: Mapping[str, Measured], common: set[str], best: Mapping[str, float], plain_seconds: float | None
) -> _Cells:
    """Return a row of results; `plain_seconds` are those of a batch without compression."""
    cells = _compressor(row.method, row.strength)
    for name, measured in metrics.items():
        metric_cells = _cells(measured.title, row.main.get(name), best if row.run.compressors else {})
        if measured.better == "higher" and row.accuracy_missing:
            metric_cells[0] = (measured.title, row.accuracy_missing)
        cells += metric_cells
    reduction = row.run.reduction
    cells += [
        ("GFLOPs", f"{row.run.gflops:#.4g}" if row.run.gflops < 1000 else f"{row.run.gflops:.1f}"),
        ("paper's GFLOPs", _paper(row.paper_costs.get("gflops"))),
        ("less (%)", _NONE if reduction is None else f"{reduction:.1f}"),
        ("paper's less (%)", _paper(row.paper_costs.get("gflops_reduction"))),
    ]
    for task, verb in zip(TASKS, ("classified", "generated", "probed"), strict=True):
        cells.append((f"s/image {verb}", f"{row.runs[task].seconds:#.3g}" if task in row.runs else _NONE))
    seconds = row.seconds_per_batch
    paper_costs = row.paper_costs if seconds else {}
    cells += [
        ("s/batch of 4", f"{seconds:#.3g}" if seconds else _NONE),
        ("paper's s/batch", _paper(paper_costs.get("seconds_per_batch_of_4"))),
        ("acceleration", f"{plain_seconds / seconds:.2f}" if plain_seconds and seconds else _NONE),
        ("paper's acceleration", _paper(paper_costs.get("acceleration"))),
    ]
    notes = "; ".join(note for note in row.notes if note not in common)
    return [*cells, ("notes", notes), ("runs", ", ".join(str(run.path) for run in row.runs.values()))]


def _comparison(comparison: Comparison) -> _Cells:
    metric, run, digits = comparison.metric, comparison.run, comparison.digits
    low, high = (signed(end, digits) for end in comparison.interval[:2])
    name = method(run.compressors) + (f" on {run.model}" if run.model != comparison.base.model else "")
    return [
        *_compressor(name, strength(run.compressors)),
        ("metric", metric_title(metric.name, metric.unit)),
        ("difference", signed(metric.difference, digits)),
        ("interval", f"{low} to {high}"),
        ("confidence (%)", f"{comparison.confidence:g}"),
        ("only this run right", f"{metric.counts.first:,}" if metric.counts else _NONE),
        ("only the base right", f"{metric.counts.second:,}" if metric.counts else _NONE),
        ("n", f"{metric.n:,}"),
        ("p", p_text(metric.p)),
        ("p corrected", p_text(comparison.p_corrected)),
        ("smallest detectable", f"{comparison.detectable:.{digits}f}" if comparison.detectable else _NONE),
        ("run", str(run.path)),
    ]


def _compressor(name: str, strength: tuple[str, float] | None) -> _Cells:
    return [("compressor", name), ("setting", f"{strength[0]} {strength[1]:g}" if strength else _NONE)]


def _cells(header: str, measured: Measured | None, best: Mapping[str, float]) -> _Cells:
    """Return value with interval, number of images, the paper's value and the difference from it."""
    texts = [_NONE] * 4
    if measured is not None:
        value, paper = measured.value, measured.paper
        mark = " *" if value is not None and best.get(measured.metric) == value else ""
        texts = [
            with_interval(value, measured.low, measured.high) + mark,
            _NONE if measured.n is None else f"{measured.n:,}",
            _paper(paper),
            _NONE if paper is None or value is None else paper.differences(value, measured.digits),
        ]
    return list(zip((header, "n", "paper", "difference"), texts, strict=True))


def _paper(value: PaperValue | None) -> str:
    return value.text if value else _NONE


def _paper_notes(group: Group) -> dict[str, list[str]]:
    """Return the notes on inconsistent values of the paper, each with its rows and metrics."""
    rows_by_note: dict[str, list[str]] = {}
    for row in group.rows:
        values = [(measured.metric, measured.paper) for measured in row.all_metrics]
        values += [("GFLOPs", row.paper_costs.get("gflops")), ("less", row.paper_costs.get("gflops_reduction"))]
        names = [text for _, text in _compressor(row.method, row.strength) if text != _NONE]
        for metric, paper in values:
            if paper and paper.note:
                rows_by_note.setdefault(paper.note, []).append(" ".join([*names, metric]))
    return rows_by_note


def _remarks(groups: Sequence[Group]) -> list[str]:
    """Return a description of the runs, and the remarks on all tables."""
    runs = [run for group in groups for run in group.runs]
    environments = [run.results["environment"] for run in runs]
    facts: dict[str, Iterable[Any]] = {
        "bigain": (environment.get("packages", {}).get("bigain") for environment in environments),
        "commit": ((environment.get("git_commit") or "")[:10] for environment in environments),
        "device": (environment.get("device_name") or environment.get("device") for environment in environments),
        "seed": (run.results["protocol"].get("seed") for run in runs),
    }
    described = []
    for name, values in facts.items():
        if distinct := [*dict.fromkeys(str(value) for value in values if value not in ("", None))]:
            more = f" and {len(distinct) - 3} more" if len(distinct) > 3 else ""
            described.append(f"{name} {' / '.join(distinct[:3])}{more}")
    remarks = [
        f"Written on {date.today().isoformat()} by bigain {version('bigain')}. Runs of {', '.join(described)}.",
        "Accuracies have 95 % Wilson intervals over images; distances have one where it could be computed.",
        "GFLOPs are of one evaluation of the network, 2 per multiply-add; less: saved by compression.",
    ]
    if any(map(_best, groups)):
        remarks.append("* marks the best compressed run of a column.")
    if any(group.settings for group in groups):
        remarks.append("Runs of other images, seeds or settings have a section of their own.")
    if any(group.comparisons for group in groups):
        remarks.append(
            f"Image by image: p-values are corrected by Holm's method for all runs of the table. {INTERVALS} The "
            "smallest detectable difference is detected with 80 % power at this share of discordant images."
        )
    if any(measured.paper for group in groups for row in group.rows for measured in row.all_metrics):
        remarks.append(
            "Difference: ours minus the paper's. One standard error is 0.65 points on the 3,669 images of Oxford-IIIT "
            "Pets and 1.1 points on 2,000 images of ImageNet-1K; several gains that the paper prints are smaller. "
            "Runs with other settings have no paper value. † marks values known to be inconsistent. The released code "
            "produced the printed numbers: (code) marks its settings, (text) those of the paper's text."
        )
    if any(row.seconds_per_batch for group in groups for row in group.rows):
        remarks.append(
            "Seconds of a batch of 4 are those of all steps of the denoiser, without the VAE; the paper's are on an "
            "RTX 4090. Acceleration: by how much shorter than without compression."
        )
    return remarks


def _page(remarks: Sequence[str], sections: Sequence[_Section], left_out: Sequence[str], figures: Path) -> str:
    """Render the report as one HTML page, with the figures inside as SVG and all text escaped."""
    from jinja2 import Environment, StrictUndefined

    images = {}
    for plot in (plot for section in sections for plot in section.plots):
        svg = (figures / f"{plot.name}.svg").read_bytes()
        images[plot.name] = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.render(title=_TITLE, sections=sections, remarks=remarks, left_out=left_out, images=images)


def _markdown(remarks: Sequence[str], sections: Sequence[_Section], left_out: Sequence[str]) -> str:
    """Return the report as Markdown that shows the figures in `figures/` beside it."""
    blocks = [f"# {_TITLE}", "\n".join(f"{markdown_text(text)}  " for text in remarks)]
    for section in sections:
        blocks.append(f"## {markdown_text(section.title)}")
        for table in section.tables:
            blocks += [f"**{markdown_text(table.caption)}**", table.markdown()]
        blocks += [_bullets(section.notes), _bullets(section.sentences)]
        blocks += [f"![{markdown_text(plot.caption)}](figures/{plot.name}.svg)" for plot in section.plots]
    if left_out:
        blocks += ["## Left out", _bullets(left_out)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(text)}" for text in texts)


def _latex(remarks: Sequence[str], sections: Sequence[_Section], left_out: Sequence[str]) -> str:
    r"""Return tables for `\input` into a paper, scaled to the page; without columns of notes and directories."""
    lines = [r"% In the preamble: \usepackage{booktabs,adjustbox}", f"% {CONTROL.sub(' ', remarks[0])}"]
    # Without line breaks the text cannot leave the comment.
    lines += [f"% left out: {CONTROL.sub(' ', reason)}" for reason in left_out]
    for section in sections:
        marks = [rf"\par\smallskip\footnotesize {latex_text(note)}" for note in section.notes if note.startswith("†")]
        for table in section.tables:
            shown = [i for i, header in enumerate(table.headers) if header not in _OMITTED_IN_LATEX]
            rows = [[row[i] for i in shown] for row in table.rows]
            body = Table([table.headers[i] for i in shown], rows, "".join(table.align[i] for i in shown)).latex()
            marked = any("†" in cell for row in rows for cell in row)
            lines += ["", r"\begin{table*}", r"\centering\footnotesize", rf"\caption{{{latex_text(table.caption)}}}"]
            lines += [_FIT, body, r"\end{adjustbox}", *(marks if marked else []), r"\end{table*}"]
    return "\n".join(lines) + "\n"


def run_lines(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return a line per run and metric; proportions and their differences are in percent."""
    lines = []
    rows = [(row, *item) for group in groups for row in group.rows for item in row.runs.items()]
    for row, task, run in rows:
        name, value = row.strength or (None, None)
        # A run without any metric has a line for its costs.
        for measured in row.metrics[task] or [Measured("", None, None, None, None)]:
            paper = measured.paper
            (printed, table), *other_values = paper.values if paper else [(None, None)]
            line: dict[str, Any] = {"run": str(run.path), "task": task, "dataset": run.dataset, "model": run.model}
            line |= {"compressor": row.method, "strength_name": name, "strength": value}
            line |= {key: getattr(measured, key) for key in ("metric", "value", "low", "high", "n")}
            line |= {"paper": printed, "paper_table": table, "paper_other": " ".join(f"{x:g}" for x, _ in other_values)}
            line["difference"] = None if printed is None or measured.value is None else measured.value - printed
            line |= {"paper_reading": paper and paper.reading, "paper_note": paper and paper.note}
            line |= {"gflops": run.gflops, "gflops_less_percent": row.run.reduction, "seconds_per_image": run.seconds}
            lines.append({**line, "settings": json.dumps(run.compressors), "notes": "; ".join(row.notes)})
    return lines
