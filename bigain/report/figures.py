"""The figures of a report, as PNG and SVG: curves over the strength of compression, and the Pareto front."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bigain.report.rows import Group, Measured, Row, main_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = Mapping[str, Any]
Point = tuple[float, ...]

GREY = "#555555"
# Distinguishable with all common kinds of colour blindness (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "os^Dv<>PX*"
PLAIN: Look = {"color": GREY, "marker": "s", "markerfacecolor": "none"}
_STYLE: Any = {
    # Names of runs are text even if they contain dollar signs.
    "text.parse_math": False,
    # The same input gives the same file.
    "svg.hashsalt": "bigain",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_AXES = {"ratio": "tokens removed (ratio)", "factor": "downsampling factor per side", "tau": "cells merged (tau)"}
_CURVES = (
    "Accuracy and distance against compression: {}. Error bars: 95 % intervals; hollow markers: the paper's values; "
    "dashed line: without compression."
)
_PARETO = (
    "Cost, accuracy and distance: {}. Line: the Pareto front. In panels of accuracy and distance, larger markers cost "
    "more, and the Pareto front of all three is outlined in black."
)
_MOST_TICKS = 8
# Characters in a line of the legend.
_WIDTH = 32
# Inches to the left and right of the panels.
_LEFT, _LEGEND = 0.7, 2.7


class Plot(NamedTuple):
    """A drawn figure: its file name without suffix, and its caption."""

    name: str
    caption: str


def draw(groups: Sequence[Group], folder: Path) -> list[list[Plot]]:
    """Draw the figures of every group into a folder.

    Returns:
        For each group: the curves if any run has a strength, the Pareto front if two rows have the same metric.
    """
    plots: list[list[Plot]] = [[] for _ in groups]
    with plain_style():
        for number, group in enumerate(groups, 1):
            stem, title = f"{number}-{_slug(group.dataset)}-{_slug(group.model)}", f"{group.dataset}, {group.model}"
            figures = [("curves", _CURVES, _curves(group.rows)), ("pareto", _PARETO, _pareto(group.rows))]
            for kind, caption, figure in figures:
                if figure is not None:
                    plots[number - 1].append(Plot(f"{kind}-{stem}", caption.format(title)))
                    save(figure, folder / plots[number - 1][-1].name)
    return plots


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw inside this block in bigain's style instead of the user's: the same runs give the same files everywhere."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and SVG; `path` has no suffix."""
    figure.savefig(f"{path}.png", dpi=120, metadata={"Software": None})
    figure.savefig(f"{path}.svg", metadata={"Date": None, "Creator": None})


def panels(width: int, height: int) -> tuple[Figure, Any]:
    """Return a figure and its axes `[height][width]`, made without pyplot, which would keep it open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_LEFT + 3.9 * width + _LEGEND, 0.6 + 3.1 * height))
    axes = figure.subplots(height, width, squeeze=False)
    inches = figure.get_size_inches()
    right = 1 - _LEGEND / inches[0]
    figure.subplots_adjust(_LEFT / inches[0], 0.6 / inches[1], right, 1 - 0.3 / inches[1], 0.28, 0.35)
    return figure, axes


def look(number: int) -> Look:
    """Return colour and marker of a line."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def add_legend(figure: Figure, lines: Sequence[tuple[str, Look]]) -> None:
    """Put a legend of names and styles to the right of the panels."""
    from matplotlib.lines import Line2D

    handles = []
    for name, style in lines:
        # Control characters make an SVG malformed.
        text = "".join(character if character.isprintable() else " " for character in name)
        handles.append(
            Line2D([], [], label=textwrap.fill(text, _WIDTH), **{"linewidth": 1.2, "markersize": 5, **style})
        )
    place = (1 - (_LEGEND - 0.05) / figure.get_size_inches()[0], 0.5)
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=place)


def _curves(rows: Sequence[Row]) -> Figure | None:
    """Draw each accuracy and distance against each kind of strength; None without any such run."""
    varied = [row for row in rows if row.strength]
    kinds = [kind for kind in _AXES if any(row.strength and row.strength[0] == kind for row in varied)]
    metrics = {name: _title(metric) for name, metric in main_metrics(varied).items() if _with(varied, name)}
    if not kinds or not metrics:
        return None
    figure, axes = panels(len(kinds), len(metrics))
    for (i, metric), (j, kind) in itertools.product(enumerate(metrics), enumerate(kinds)):
        _against_strength(axes[i][j], rows, kind, metric)
        axes[i][j].set_ylabel(metrics[metric])
    _legend(figure, rows, "-", any(measured.paper for row in varied for measured in row.main.values()))
    return figure


def _against_strength(axes: Axes, rows: Sequence[Row], kind: str, metric: str) -> None:
    varied = [(row.strength[1], row) for row in rows if row.strength and row.strength[0] == kind]
    for name, style in _looks(rows).items():
        points = [(x, row.main[metric]) for x, row in varied if row.method == name and _with([row], metric)]
        if not points:
            continue
        _errorbar(axes, points, linewidth=1.2, markersize=5, **style)
        printed = [(x, value) for x, point in points if point.paper for value, _ in point.paper.values]
        if printed:
            hollow = {**style, "markerfacecolor": "none", "linestyle": ":", "linewidth": 0.8, "markersize": 7}
            axes.plot([x for x, _ in printed], [value for _, value in printed], **hollow)
    for row in _with(rows, metric):
        if row.method == "none":
            value = row.value(metric)
            axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
            # A line just inside the frame would otherwise lie on it.
            axes.update_datalim([(0.0, value)], updatex=False)
            axes.autoscale_view(scalex=False)
    steps = sorted({x for x, _ in varied})
    if len(steps) <= _MOST_TICKS:
        axes.set_xticks(steps, [f"{step:g}" for step in steps])
    axes.set_xlabel(_AXES[kind])


def _pareto(rows: Sequence[Row]) -> Figure | None:
    """Draw accuracy and distance against cost and against each other; None unless two rows have the same metric."""
    metrics = {name: metric for name, metric in main_metrics(rows).items() if len(_with(rows, name)) > 1}
    if not metrics:
        return None
    high, low = ([metric for metric in metrics.values() if metric.better == better] for better in ("higher", "lower"))
    pairs = [pair for pair in itertools.product(high, low) if len(_with(rows, *(metric.metric for metric in pair))) > 1]
    figure, axes = panels(len(metrics) + len(pairs), 1)
    for panel, metric in zip(axes[0], metrics.values(), strict=False):
        _against_cost(panel, _with(rows, metric.metric), metric, _looks(rows))
    for panel, pair in zip(axes[0][len(metrics) :], pairs, strict=True):
        _against_each_other(panel, _with(rows, *(metric.metric for metric in pair)), *pair, _looks(rows))
    _legend(figure, rows, "")
    return figure


def pareto_front(points: Sequence[Point]) -> list[bool]:
    """Whether each point is on the Pareto front: no different point is at most as large in every coordinate."""
    return [
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    ]


def _against_cost(axes: Axes, rows: Sequence[Row], metric: Measured, looks: Mapping[str, Look]) -> None:
    for name, style in looks.items():
        points = [(row.run.gflops, row.main[metric.metric]) for row in rows if row.method == name]
        if points:
            _errorbar(axes, points, linestyle="", markersize=6, elinewidth=1, **style)
    sign = 1.0 if metric.better == "lower" else -1.0
    costs = [(row.run.gflops, sign * row.value(metric.metric)) for row in rows]
    front = sorted({point for point, on_front in zip(costs, pareto_front(costs), strict=True) if on_front})
    axes.plot([x for x, _ in front], [sign * y for _, y in front], color="#999999", linewidth=1, zorder=0)
    axes.set_xlabel("GFLOPs per evaluation")
    axes.set_ylabel(_title(metric))


def _against_each_other(
    axes: Axes, rows: Sequence[Row], accuracy: Measured, distance: Measured, looks: Mapping[str, Look]
) -> None:
    least, most = min(row.run.gflops for row in rows), max(row.run.gflops for row in rows)
    points = [(row.run.gflops, -row.value(accuracy.metric), row.value(distance.metric)) for row in rows]
    for row, point, on_front in zip(rows, points, pareto_front(points), strict=True):
        size = 4 + 8 * (row.run.gflops - least) / (most - least) if most > least else 7
        outline: Look = {"markeredgecolor": "black", "markeredgewidth": 1.4} if on_front else {}
        axes.plot([-point[1]], [point[2]], linestyle="", markersize=size, **looks[row.method], **outline)
    axes.set_xlabel(_title(accuracy))
    axes.set_ylabel(_title(distance))


def _with(rows: Sequence[Row], *metrics: str) -> list[Row]:
    """Return the rows that have a value of each metric."""
    return [row for row in rows if all(name in row.main and row.main[name].value is not None for name in metrics)]


def _looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Return colour and marker of each method; `none` is grey and hollow."""
    names = dict.fromkeys(row.method for row in rows if row.method != "none")
    return {"none": PLAIN, **{name: look(number) for number, name in enumerate(names)}}


def _errorbar(axes: Axes, points: Sequence[tuple[float, Measured]], **style: Any) -> None:
    ends = [(point.value or 0.0, point.low, point.high) for _, point in points]
    down = [0.0 if low is None else value - low for value, low, _ in ends]
    up = [0.0 if high is None else high - value for value, _, high in ends]
    axes.errorbar([x for x, _ in points], [value for value, _, _ in ends], yerr=[down, up], capsize=2, **style)


def _legend(figure: Figure, rows: Sequence[Row], linestyle: str, paper: bool = False) -> None:
    lines = [(name, {"linestyle": linestyle, **style}) for name, style in _looks(rows).items() if name != "none"]
    if any(row.method == "none" for row in rows):
        dashed = {"linestyle": "--", "marker": ""} if linestyle else {"linestyle": ""}
        lines.insert(0, ("without compression", {**PLAIN, **dashed}))
    if paper:
        lines.append(("the paper", {**PLAIN, "marker": "o", "linestyle": ":", "linewidth": 0.8, "markersize": 6}))
    add_legend(figure, lines)


def _title(metric: Measured) -> str:
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.metric}{unit}" + (", lower is better" if metric.better == "lower" else "")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-40:] or "x"
