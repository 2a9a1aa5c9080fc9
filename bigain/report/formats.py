"""Reports as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bigain.report.comparison import COLUMNS
from bigain.report.document import Section, Table
from bigain.report.rows import Group, Measured, Row, measured

_LATEX: Mapping[str, str] = {
    **{sign: f"\\{sign}" for sign in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"\textdagger{}",
    "+-": r"\(\pm\)",
}
_LATEX_PATTERN = re.compile("|".join(map(re.escape, sorted(_LATEX, key=len, reverse=True))))
_LEFT_OUT_OF_LATEX = ("notes", "runs", "run")
_ROWS_OF_A_PAGE = 40
# As wide as the page at most, whatever its columns and names.
_FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")


def markdown(title: str, sections: Sequence[Section], remarks: Sequence[str], left_out: Sequence[str]) -> str:
    """The report as Markdown, with figures beside it in `figures/`."""
    lines = [f"# {title}", "", *(f"{_md(text)}  " for text in remarks), ""]
    for section in sections:
        lines += [f"## {_md(section.title)}", ""]
        for table in section.tables:
            lines += [f"**{_md(table.caption)}**", "", *_md_table(table), ""]
        lines += [f"- {_md(note)}" for note in section.notes]
        lines += [""] if section.notes else []
        lines += [f"- {_md(sentence)}" for sentence in section.sentences]
        lines += [""] if section.sentences else []
        for plot in section.plots:
            lines += [f"![{_md(plot.caption)}](figures/{plot.name}.svg)", ""]
    if left_out:
        lines += ["## Left out", "", *(f"- {_md(reason)}" for reason in left_out), ""]
    return "\n".join(lines)


def _md(text: str) -> str:
    """Text as Markdown shows it, whatever it holds."""
    plain = _CONTROL.sub(" ", text).replace("&", "&amp;").replace("<", "&lt;")
    # An underscore inside a word is one; elsewhere it would be emphasis.
    return re.sub(r"([\\`*|]|\](?=\()|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain)


def _md_table(table: Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = ["--:" if numeric else "---" for numeric in table.numeric]
    return [line([_md(cell) for cell in table.headers]), line(rule), *(line([*map(_md, row)]) for row in table.rows)]


def latex(sections: Sequence[Section], left_out: Sequence[str]) -> str:
    r"""Tables for `\input` into a paper, with booktabs; without columns of notes and directories."""
    lines = [r"% In the preamble: \usepackage{booktabs,graphicx}"]
    # A comment ends with its line, so what is in it cannot get out.
    lines += [f"% left out: {_CONTROL.sub(' ', reason)}" for reason in left_out]
    for section in sections:
        marks = [note for note in section.notes if note.startswith("†")]
        for part in (part for table in section.tables for part in _pages(table)):
            lines += _latex_table(part, marks)
    return "\n".join(lines) + "\n"


def _pages(table: Table) -> Iterator[Table]:
    """A table in parts of a page each: a float does not break."""
    for start in range(0, len(table.rows), _ROWS_OF_A_PAGE):
        caption = f"{table.caption} (continued)" if start else table.caption
        yield replace(table, caption=caption, rows=table.rows[start : start + _ROWS_OF_A_PAGE])


def _latex_table(table: Table, marks: Sequence[str]) -> list[str]:
    kept = [i for i, header in enumerate(table.headers) if header not in _LEFT_OUT_OF_LATEX]

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_tex(cells[i]) for i in kept) + r" \\"

    marked = any("†" in row[i] for row in table.rows for i in kept)
    foot = [rf"\par\smallskip\footnotesize {_tex(mark)}" for mark in marks] if marked else []
    return [
        "",
        r"\begin{table*}",
        r"\centering\footnotesize",
        rf"\caption{{{_tex(table.caption)}}}",
        _FIT,
        rf"\begin{{tabular}}{{@{{}}{''.join('r' if table.numeric[i] else 'l' for i in kept)}@{{}}}}",
        r"\toprule",
        line(table.headers),
        r"\midrule",
        *(line(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        *foot,
        r"\end{table*}",
    ]


def _tex(text: str) -> str:
    plain = _LATEX_PATTERN.sub(lambda found: _LATEX[found[0]], _CONTROL.sub(" ", text))
    # An empty group keeps a bracket from being read as the option of the line break before it.
    return f"{{}}{plain}" if plain.startswith(("[", "*")) else plain


def runs_csv(groups: Sequence[Group]) -> str:
    """A line per run and metric; proportions and their differences in percent."""
    return _csv([line for group in groups for row in group.rows for line in _lines(group, row)])


def _lines(group: Group, row: Row) -> Iterator[dict[str, Any]]:
    name, value = row.strength or (None, None)
    for run in row.runs.values():
        head: dict[str, Any] = {"run": str(run.path), "task": run.task, "dataset": group.dataset, "model": group.model}
        head |= {"compressor": row.method, "strength_name": name, "strength": value}
        cost = {"gflops": run.gflops, "gflops_less_percent": row.reduction, "seconds_per_image": run.seconds}
        tail = {"settings": json.dumps(run.compressors), "notes": "; ".join(row.notes)}
        # A run without any metric has its costs, and its line.
        for one in measured(run) or [Measured("", None, None, None, None)]:
            measure = {key: getattr(one, key) for key in ("metric", "value", "low", "high", "n")}
            yield {**head, **measure, **_printed(one), **cost, **tail}


def _printed(one: Measured) -> dict[str, Any]:
    """What the paper prints: the first value, and others that it prints for the same."""
    columns = ("paper", "paper_table", "paper_other", "difference", "paper_note")
    if one.paper is None:
        return dict.fromkeys(columns)
    (value, table), *others = one.paper.values
    difference = None if one.value is None else one.value - value
    other = " ".join(f"{value:g}" for value, _ in others)
    return dict(zip(columns, (value, table, other, difference, one.paper.note), strict=True))


def comparisons_csv(groups: Sequence[Group]) -> str:
    """A line per comparison, in points."""
    rows = [one.row() for group in groups for one in group.comparisons]
    return _csv([{**row, **{key: "; ".join(row[key]) for key in ("differs", "also_differs")}} for row in rows], COLUMNS)


def _inert(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula, whatever a directory is called."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Rows with a header; `columns` are those of a table that may be empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _inert(value) for key, value in row.items()} for row in rows)
    return text.getvalue()
