"""Reports as Markdown, LaTeX, CSV and one HTML page."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigain.report.comparison import COLUMNS
from bigain.report.document import Section
from bigain.report.rows import Group, Measured, Row
from bigain.report.tables import CONTROL, Table, latex_text, markdown_text

_OMITTED_IN_LATEX = ("notes", "runs", "run")
_ROWS_PER_PAGE = 40
# At most as wide as the page.
_FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"


def page(
    title: str, sections: Sequence[Section], remarks: Sequence[str], left_out: Sequence[str], figures: Path
) -> str:
    """Render the report as one HTML page, with the figures inside as SVG and all text escaped.

    Args:
        title: Title of the page.
        sections: The content.
        remarks: What a reader has to know about all tables.
        left_out: Directories that are not in the report, and why.
        figures: Folder of the drawn figures.
    """
    from jinja2 import Environment, StrictUndefined

    images = {plot.name: _data_uri(figures / f"{plot.name}.svg") for section in sections for plot in section.plots}
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections, remarks=remarks, left_out=left_out, images=images)


def _data_uri(path: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


def markdown(title: str, sections: Sequence[Section], remarks: Sequence[str], left_out: Sequence[str]) -> str:
    """Return the report as Markdown that shows the figures in `figures/` beside it."""
    parts = [f"# {title}", "\n".join(f"{markdown_text(text)}  " for text in remarks)]
    for section in sections:
        parts.append(f"## {markdown_text(section.title)}")
        for table in section.tables:
            parts += [f"**{markdown_text(table.caption)}**", table.markdown()]
        parts += [_bullets(section.notes), _bullets(section.sentences)]
        parts += [f"![{markdown_text(plot.caption)}](figures/{plot.name}.svg)" for plot in section.plots]
    if left_out:
        parts += ["## Left out", _bullets(left_out)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(text)}" for text in texts)


def latex(sections: Sequence[Section], left_out: Sequence[str]) -> str:
    r"""Return tables for `\input` into a paper, with booktabs; without columns of notes and directories."""
    lines = [r"% In the preamble: \usepackage{booktabs,graphicx}"]
    # Without line breaks the text cannot leave the comment.
    lines += [f"% left out: {CONTROL.sub(' ', reason)}" for reason in left_out]
    for section in sections:
        marks = [note for note in section.notes if note.startswith("†")]
        for part in (part for table in section.tables for part in _pages(table)):
            lines += _float(part, marks)
    return "\n".join(lines) + "\n"


def _pages(table: Table) -> Iterator[Table]:
    """Yield parts of at most a page, because a float does not break, without the columns omitted in LaTeX."""
    kept = [i for i, header in enumerate(table.headers) if header not in _OMITTED_IN_LATEX]
    rows = [[row[i] for i in kept] for row in table.rows]
    headers, align = [table.headers[i] for i in kept], "".join(table.sides[i][0] for i in kept)
    for start in range(0, len(rows), _ROWS_PER_PAGE):
        caption = f"{table.caption} (continued)" if start else table.caption
        yield Table(headers, rows[start : start + _ROWS_PER_PAGE], align, caption)


def _float(table: Table, marks: Sequence[str]) -> list[str]:
    marked = any("†" in cell for row in table.rows for cell in row)
    return [
        "",
        r"\begin{table*}",
        r"\centering\footnotesize",
        rf"\caption{{{latex_text(table.caption)}}}",
        _FIT,
        table.latex() + "}",
        *(rf"\par\smallskip\footnotesize {latex_text(mark)}" for mark in marks if marked),
        r"\end{table*}",
    ]


def runs_csv(groups: Sequence[Group]) -> str:
    """Return a line per run and metric; proportions and their differences are in percent."""
    return _csv([line for group in groups for row in group.rows for line in _lines(group, row)])


def _lines(group: Group, row: Row) -> Iterator[dict[str, Any]]:
    name, value = row.strength or (None, None)
    for task, run in row.runs.items():
        head: dict[str, Any] = {"run": str(run.path), "task": task, "dataset": group.dataset, "model": group.model}
        head |= {"compressor": row.method, "strength_name": name, "strength": value}
        tail: dict[str, Any] = {
            "gflops": run.gflops,
            "gflops_less_percent": row.run.reduction,
            "seconds_per_image": run.seconds,
        }
        tail |= {"settings": json.dumps(run.compressors), "notes": "; ".join(row.notes)}
        # A run without any metric has a line for its costs.
        for one in row.metrics[task] or [Measured("", None, None, None, None)]:
            measure = {key: getattr(one, key) for key in ("metric", "value", "low", "high", "n")}
            yield {**head, **measure, **_paper(one), **tail}


def _paper(measured: Measured) -> dict[str, Any]:
    """Return the first value that the paper prints, and the others that it prints for the same cell."""
    columns = ("paper", "paper_table", "paper_other", "difference", "paper_note")
    if measured.paper is None:
        return dict.fromkeys(columns)
    (value, table), *others = measured.paper.values
    difference = None if measured.value is None else measured.value - value
    other = " ".join(f"{value:g}" for value, _ in others)
    return dict(zip(columns, (value, table, other, difference, measured.paper.note), strict=True))


def comparisons_csv(groups: Sequence[Group]) -> str:
    """Return a line per comparison, in points."""
    rows = [comparison.row() for group in groups for comparison in group.comparisons]
    lists = ("differs", "also_differs")
    return _csv([{**row, **{key: "; ".join(row[key]) for key in lists}} for row in rows], list(COLUMNS))


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Return rows below a header; `columns` are those of a table that may be empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _inert(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _inert(value: Any) -> Any:
    """Quote text that a spreadsheet would evaluate as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
