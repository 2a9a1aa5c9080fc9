"""What all figures of a report share: panels, colours and markers, error bars, the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigain.report.rows import Measured, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Look = Mapping[str, Any]
GREY = "#555555"
MARKERS = "os^Dv<>PX*"
# Distinguishable with all common kinds of colour blindness (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LONGEST = 32
# Inches beside the panels.
_LEFT, _LEGEND = 0.7, 2.7


def panels(width: int, height: int) -> tuple[Figure, Any]:
    """A figure of panels, without pyplot, so that nothing stays open.

    Returns:
        The figure, and its axes `[height][width]`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_LEFT + 3.9 * width + _LEGEND, 0.6 + 3.1 * height))
    axes = figure.subplots(height, width, squeeze=False)
    inches = figure.get_size_inches()
    # Room for the legend on the right, in inches, whatever the number of panels.
    right = 1 - _LEGEND / inches[0]
    figure.subplots_adjust(_LEFT / inches[0], 0.6 / inches[1], right, 1 - 0.3 / inches[1], 0.28, 0.35)
    return figure, axes


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Colour and marker of each method; `none` is grey and hollow."""
    found: dict[str, Look] = {"none": {"color": GREY, "marker": "s", "markerfacecolor": "none"}}
    for i, name in enumerate(dict.fromkeys(row.method for row in rows if row.method != "none")):
        found[name] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    return found


def value(found: Measured | None) -> float | None:
    """The number, if there is one."""
    return found.value if found else None


def bars(found: Sequence[Measured]) -> list[list[float]]:
    """Lengths of error bars down and up; 0 without an interval."""
    ends = [(one.value or 0.0, one.low, one.high) for one in found]
    down = [middle - low if low is not None else 0.0 for middle, low, _ in ends]
    up = [high - middle if high is not None else 0.0 for middle, _, high in ends]
    return [down, up]


def unit(metric: str) -> str:
    """What an axis is called."""
    return f"{metric}, lower is better" if metric.startswith("frechet") else f"{metric} (%)"


def legend(figure: Figure, rows: Sequence[Row], lines: bool, paper: bool = False) -> None:
    """Name the methods to the right of the panels.

    Args:
        figure: The figure.
        rows: What is drawn.
        lines: Methods are lines, and `none` is dashed; otherwise they are points.
        paper: Hollow markers are the paper's.
    """
    from matplotlib.lines import Line2D

    present = {row.method for row in rows}
    handles = []
    for name, look in looks(rows).items():
        if name in present:
            style = {**look, "linestyle": ("--" if name == "none" else "-") if lines else ""}
            style |= {"marker": ""} if lines and name == "none" else {}
            handles.append(Line2D([], [], label=shown(name), linewidth=1.2, markersize=5, **style))
    if paper:
        hollow: Look = {"color": GREY, "marker": "o", "markerfacecolor": "none", "linestyle": ":", "linewidth": 0.8}
        handles.append(Line2D([], [], label="the paper", **hollow))
    beside(figure, handles)


def beside(figure: Figure, handles: Sequence[Any]) -> None:
    """Put a legend to the right of the panels."""
    place = (1 - (_LEGEND - 0.05) / figure.get_size_inches()[0], 0.5)
    figure.legend(handles=list(handles), loc="center left", bbox_to_anchor=place)


def shown(name: str) -> str:
    """A name as the legend has room for it."""
    # An SVG with control characters in it is not well-formed.
    plain = "".join(sign if sign.isprintable() else " " for sign in name)
    text = "without compression" if name == "none" else plain
    if len(text) <= _LONGEST:
        return text
    # The strength stands last, and tells lines apart.
    head, at, strength = text.rpartition(" at ")
    tail = f"{at}{strength}" if at and len(strength) < _LONGEST // 2 else ""
    return f"{(head if tail else text)[: _LONGEST - 3 - len(tail)]}...{tail}"
