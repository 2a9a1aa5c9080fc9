"""Text tables through `tabulate`: for terminals, Markdown and LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import LATEX_ESCAPE_RULES, tabulate

_LATEX = {**LATEX_ESCAPE_RULES, "|": r"\textbar{}", "†": r"\textdagger{}", "±": r"\(\pm\)"}
CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        headers: Column names; empty for a table without a header.
        rows: The cells of each row.
        align: A letter per column, `l` or `r`; further columns are aligned left.
        caption: What the table shows; whoever prints the table prints it.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str = ""
    caption: str = ""

    @property
    def sides(self) -> list[str]:
        """`left` or `right` for every column."""
        columns = len(self.headers or (self.rows[0] if self.rows else ()))
        return ["right" if letter == "r" else "left" for letter in self.align.ljust(columns)[:columns]]

    def plain(self) -> str:
        """Return lines for a terminal: columns two spaces apart, no rules, no newline at the end."""
        # Headers are a row: tabulate would make columns wider than their headers.
        return self._text([self.headers, *self.rows] if self.headers else self.rows, [], "plain")

    def markdown(self) -> str:
        """Return a GitHub Markdown table with every cell escaped."""
        return self._text(
            [list(map(markdown_text, row)) for row in self.rows], list(map(markdown_text, self.headers)), "pipe"
        )

    def latex(self) -> str:
        """Return a LaTeX `tabular` with booktabs rules and every cell escaped."""
        # tabulate's own booktabs format escapes fewer characters and leaves space beside the rules.
        columns = "".join(side[0] for side in self.sides)
        header, *rows = (" & ".join(map(latex_text, row)) + r" \\" for row in (self.headers, *self.rows))
        begin = rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}"
        return "\n".join([begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"])

    def _text(self, rows: Sequence[Sequence[str]], headers: Sequence[str], style: str) -> str:
        return tabulate(rows, headers, style, colalign=self.sides, disable_numparse=True)


def indented(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an indented table for a terminal: names in the first column, numbers in the others."""
    return textwrap.indent(Table(headers, rows, "l" + "r" * (len(headers) - 1)).plain(), "  ")


def markdown_text(text: str) -> str:
    """Escape text for Markdown."""
    plain = CONTROL.sub(" ", text).replace("&", "&amp;").replace("<", "&lt;")
    # An underscore inside a word stands for itself; elsewhere it would start emphasis.
    return re.sub(r"([\\`*|]|\](?=\()|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain)


def latex_text(text: str) -> str:
    """Escape text for LaTeX."""
    plain = CONTROL.sub(" ", text).replace("+-", "±")
    escaped = "".join(_LATEX.get(character, character) for character in plain)
    # The empty group keeps LaTeX from reading a bracket or star as an argument of the preceding line break.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped
