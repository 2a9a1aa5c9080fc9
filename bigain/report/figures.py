"""The figures of a report: curves over the strength of compression, the Pareto front, and samples side by side."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bigain.report.rows import Group, Measured, Row, main_metrics
from bigain.report.sample_grid import SAMPLES, SAMPLES_BY_STRENGTH, sample_columns, sample_grid, strength_columns
from bigain.runs.names import metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Look = Mapping[str, Any]
Looks = Mapping[str, Look]
Rows = Sequence[Row]

GREY = "#555555"
# The colour of each method in all figures, distinguishable with all kinds of colour blindness (Okabe and Ito; Tol).
_METHOD_COLOURS = {
    "ToMe": "#0072b2",
    "LGTM": "#d55e00",
    "CAM": "#009e73",
    "ABM": "#cc79a7",
    "SiTo": "#e69f00",
    "ToDo": "#56b4e9",
    "AveragePool": "#000000",
    "IEKVD": "#882255",
    "FrequencyKV": "#999933",
}
COLOURS = (*_METHOD_COLOURS.values(),)
MARKERS = "os^Dv<>PX*"
KINDS = ("png", "svg", "pdf")
PLAIN: Look = {"color": GREY, "marker": "s", "markerfacecolor": "none"}
_STYLE: Any = {
    # Names of runs are text even if they contain dollar signs.
    "text.parse_math": False,
    # The same input gives the same file.
    "svg.hashsalt": "bigain",
    # Letters of a PDF stay text that can be edited.
    "pdf.fonttype": 42,
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
_CHANGES = (
    "Percent change from no compression of accuracy and of minus the distance, so that higher is better: {}. Error "
    "bars: intervals of the paired differences, as in the table; hollow markers: the paper's values."
)
_PARETO = (
    "Cost, accuracy and distance: {}. In panels of accuracy and distance, the area of a "
    "marker is proportional to the cost, and the Pareto front of all three is outlined in black."
)
# Drawn over the markers, which could hide the whole line.
_FRONT: Look = {"color": "#333333", "linewidth": 0.8, "zorder": 3}
_OUTLINE: Look = {"markeredgecolor": "black", "markeredgewidth": 1.4}
_MOST_TICKS = 8
# Characters in a line of the legend, and inches of its columns and lines.
_WIDTH, _COLUMN, _LINE = 32, 2.4, 0.17
# Distance between the error bars of methods, as a share of the axis.
_DODGE = 0.015


class Plot(NamedTuple):
    """A drawn figure: its file name without suffix, and its caption."""

    name: str
    caption: str


def draw(groups: Sequence[Group], folder: Path, samples: Sequence[str] = ()) -> list[list[Plot]]:
    """Draw the figures of every group into a folder; `samples` are the ids of the images to show, or the first ones.

    For each group these are the curves if any run has a strength, the same as changes if there is one run without
    compression, the Pareto front if two rows have the same metric, and samples if there are generated images.
    """
    plots: list[list[Plot]] = []
    styles = looks(row.method for group in groups for row in group.rows)
    with plain_style():
        for number, group in enumerate(groups, 1):
            rows = group.rows
            figures = [
                ("curves", _CURVES, _curves(rows, styles)),
                ("changes", _CHANGES, _curves(_changes(group), styles)),
                ("pareto", _PARETO, _pareto(rows, styles)),
            ]
            grids = [("samples", SAMPLES, sample_columns(rows))]
            for kind in ("ratio", "factor"):
                grids.append((f"samples-{kind}", SAMPLES_BY_STRENGTH, strength_columns(rows, kind)))
            for name, caption, columns in grids:
                figures.append((name, caption, sample_grid(columns, name == "samples", samples)))
            plots.append([])
            for name, caption, figure in figures:
                if figure is not None:
                    stem = f"{name}-{number}-{_slug(group.dataset)}-{_slug(group.model)}"
                    plots[-1].append(Plot(stem, caption.format(group.title)))
                    save(figure, folder / stem)
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
    """Write a figure as PNG, SVG and PDF; `path` has no suffix."""
    # The panels are laid out once for all formats.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(f"{path}.png", dpi=300, metadata={"Software": None})
    figure.savefig(f"{path}.svg", dpi=300, metadata={"Date": None, "Creator": None})
    figure.savefig(f"{path}.pdf", dpi=300, metadata={"CreationDate": None, "Creator": None, "Producer": None})


def panels(width: int, height: int, sharey: bool | Literal["row"] = False) -> tuple[Figure, Any]:
    """Return a figure and its axes `[height][width]`, made without pyplot, which would keep it open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.3 + 3.9 * width, 3.1 * height), layout="constrained")
    return figure, figure.subplots(height, width, squeeze=False, sharey=sharey)


def looks(methods: Iterable[str]) -> Looks:
    """Return colour and marker of each method; no two have the same colour, and `none` is grey and hollow."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    names = sorted({*methods} - {"none"})
    # The colour of a method is that of its first variant, such as `IEKVD[alpha 0.1]`.
    first_variant = {name.split("[")[0]: name for name in reversed(names)}
    colours = {first_variant[name]: colour for name, colour in _METHOD_COLOURS.items() if name in first_variant}
    uncoloured = [name for name in names if name not in colours]
    # Steps of the golden ratio around the circle of hues keep far from each other.
    new_colours = [to_hex(tuple(hsv_to_rgb((0.618 * number % 1, 0.8, 0.6)))) for number in range(len(uncoloured))]
    colours |= zip(uncoloured, new_colours, strict=True)
    markers = dict(zip([*COLOURS, *new_colours], itertools.cycle(MARKERS), strict=False))
    return {"none": PLAIN, **{name: {"color": colour, "marker": markers[colour]} for name, colour in colours.items()}}


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: the style turns the usual formulas off."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter("{x:g}")
    # An axis of less than a decade labels its minor ticks. On a symmetric one they have no labels.
    if axis.get_scale() == "log":
        axis.set_minor_formatter(LogFormatter())


def add_legend(figure: Figure, lines: Sequence[tuple[str, Look]]) -> None:
    """Put a legend of names and styles below the panels."""
    from matplotlib.lines import Line2D

    handles, heights = [], []
    for name, style in lines:
        # Control characters make an SVG malformed.
        text = textwrap.wrap("".join(character if character.isprintable() else " " for character in name), _WIDTH)
        handles.append(Line2D([], [], label="\n".join(text), **{"linewidth": 1.2, "markersize": 5, **style}))
        heights.append(len(text))
    columns = min(len(handles), int(figure.get_figwidth() / _COLUMN))
    rows = math.ceil(len(handles) / columns)
    # Columns are filled one after the other.
    height = 1 + max(sum(heights[start : start + rows]) for start in range(0, len(handles), rows))
    figure.set_figheight(figure.get_figheight() + _LINE * height)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _curves(rows: Rows, styles: Looks) -> Figure | None:
    """Draw each accuracy and distance against each kind of strength; None without any such run."""
    varied = [row for row in rows if row.strength]
    kinds = [kind for kind in _AXES if kind in [row.strength[0] for row in varied if row.strength]]
    metrics = {name: metric for name, metric in main_metrics(varied).items() if _with(varied, name)}
    if not metrics:
        return None
    figure, axes = panels(len(kinds), len(metrics), sharey="row")
    for (i, metric), (j, kind) in itertools.product(enumerate(metrics), enumerate(kinds)):
        _against_strength(axes[i][j], rows, kind, metric, styles)
    for row, measured in zip(axes, metrics.values(), strict=True):
        row[0].set_ylabel(_axis_title(measured))
    shown = [row for row in rows if row.strength or row.method == "none"]
    _legend(figure, shown, styles, "-", any(measured.paper for row in varied for measured in row.main.values()))
    return figure


def _changes(group: Group) -> list[Row]:
    """Return rows with main metrics as percent changes from the only row without compression; higher is better."""
    intervals = {(c.run.path, c.base.path, c.metric.name): c.interval[:2] for c in group.comparisons}
    rows = []
    for row in group.rows:
        changes: dict[str, list[Measured]] = {}
        for task, run in row.runs.items():
            plain_rows = [r for r in group.rows if r.method == "none" and task in r.runs]
            for metric in row.metrics[task] if len(plain_rows) == 1 else ():
                base, paper = plain_rows[0].main.get(metric.metric), None
                if not metric.main or metric.value is None or base is None or not base.value:
                    continue
                sign, minus = (-100, "\N{MINUS SIGN}") if metric.better == "lower" else (100, "")
                interval = intervals.get((run.path, plain_rows[0].runs[task].path, metric.metric))
                low, high = sorted(sign * end / base.value for end in interval) if interval else (None, None)
                if metric.paper and base.paper:
                    printed = base.paper.values[0][0]
                    values = ((sign * (value / printed - 1), table) for value, table in metric.paper.values)
                    paper = replace(metric.paper, values=tuple(values))
                title, change = metric_title(metric.metric, "%"), sign * (metric.value / base.value - 1)
                relative = Measured(f"change of {minus}{title}", change, low, high, metric.n, "", "higher", True, paper)
                changes.setdefault(task, []).append(relative)
        rows.append(replace(row, metrics=changes))
    return rows


def _against_strength(axes: Axes, rows: Rows, kind: str, metric: str, styles: Looks) -> None:
    varied = [(row.strength[1], row) for row in rows if row.strength and row.strength[0] == kind]
    varied.sort(key=lambda item: item[0])
    strengths = [*dict.fromkeys(x for x, _ in varied)]
    width = strengths[-1] - strengths[0] or 1.0
    with_metric = [(x, row) for x, row in varied if _with([row], metric)]
    names = [name for name in styles if name in {row.method for _, row in with_metric}]
    for index, name in enumerate(names):
        shift, style = _DODGE * (index - (len(names) - 1) / 2) * width, styles[name]
        points = [(x + shift, row.main[metric]) for x, row in with_metric if row.method == name]
        _errorbar(axes, points, linewidth=1.2, markersize=5, **style)
        printed = [(x, value) for x, point in points if point.paper for value, _ in point.paper.values]
        if printed:
            hollow = {**style, "markerfacecolor": "none", "linestyle": ":", "linewidth": 0.8, "markersize": 7}
            axes.plot([x for x, _ in printed], [value for _, value in printed], **hollow)
    for value in (row.value(metric) for row in _with(rows, metric) if row.method == "none"):
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
        # Without this, the line could lie on the frame.
        axes.update_datalim([(0.0, value)], updatex=False)
        axes.autoscale_view(scalex=False)
    if len(strengths) <= _MOST_TICKS:
        axes.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
    axes.set_xlim(strengths[0] - width / 8, strengths[-1] + width / 8)
    axes.set_xlabel(_AXES[kind])


def _pareto(rows: Rows, styles: Looks) -> Figure | None:
    """Draw accuracy and distance against cost and against each other; None unless two rows have the same metric."""
    metrics = {name: metric for name, metric in main_metrics(rows).items() if len(_with(rows, name)) > 1}
    if not metrics:
        return None
    high, low = ([metric for metric in metrics.values() if metric.better == better] for better in ("higher", "lower"))
    pairs = [pair for pair in itertools.product(high, low) if len(_with(rows, *(metric.metric for metric in pair))) > 1]
    figure, axes = panels(len(metrics) + len(pairs), 1)
    panel_of = dict(zip(metrics, axes[0], strict=False))
    has_line = [_against_cost(panel_of[name], _with(rows, name), metric, styles) for name, metric in metrics.items()]
    for panel, (accuracy, distance) in zip(axes[0][len(metrics) :], pairs, strict=True):
        panel.sharey(panel_of[distance.metric])
        _against_each_other(panel, _with(rows, accuracy.metric, distance.metric), accuracy, distance, styles)
    _legend(figure, rows, styles, "", front=any(has_line), outlined=bool(pairs))
    return figure


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Whether each point is on the Pareto front: no different point is at most as large in every coordinate."""
    return [
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    ]


def _against_cost(axes: Axes, rows: Rows, metric: Measured, styles: Looks) -> bool:
    """Draw a metric against the cost, and return whether the Pareto front is a line."""
    for name, style in styles.items():
        points = [(row.run.gflops, row.main[metric.metric]) for row in rows if row.method == name]
        if points:
            _errorbar(axes, points, linestyle="", markersize=6, elinewidth=1, **style)
    sign = 1.0 if metric.better == "lower" else -1.0
    costs = [(row.run.gflops, sign * row.value(metric.metric)) for row in rows]
    front = sorted({*itertools.compress(costs, pareto_front(costs))})
    axes.plot([x for x, _ in front], [sign * y for _, y in front], **_FRONT)
    axes.set_xlabel("GFLOPs per evaluation")
    axes.locator_params("x", nbins=6)
    axes.set_ylabel(_axis_title(metric))
    return len(front) > 1


def _against_each_other(axes: Axes, rows: Rows, accuracy: Measured, distance: Measured, styles: Looks) -> None:
    max_gflops = max(row.run.gflops for row in rows)
    points = [(row.run.gflops, -row.value(accuracy.metric), row.value(distance.metric)) for row in rows]
    for row, point, on_front in zip(rows, points, pareto_front(points), strict=True):
        size = 10 * math.sqrt(row.run.gflops / max_gflops)
        outline = _OUTLINE if on_front else {}
        axes.plot([-point[1]], [point[2]], linestyle="", markersize=size, **styles[row.method], **outline)
    axes.set_xlabel(_axis_title(accuracy))
    axes.set_ylabel(_axis_title(distance))


def _with(rows: Rows, *metrics: str) -> list[Row]:
    """Return the rows that have a value of each metric."""
    return [row for row in rows if all(name in row.main and row.main[name].value is not None for name in metrics)]


def _errorbar(axes: Axes, points: Sequence[tuple[float, Measured]], **style: Any) -> None:
    ends = [(point.value or 0.0, point.low, point.high) for _, point in points]
    lower = [0.0 if low is None else value - low for value, low, _ in ends]
    upper = [0.0 if high is None else high - value for value, _, high in ends]
    axes.errorbar([x for x, _ in points], [value for value, _, _ in ends], yerr=[lower, upper], capsize=2, **style)


def _legend(
    figure: Figure,
    rows: Rows,
    styles: Looks,
    linestyle: str,
    paper: bool = False,
    front: bool = False,
    outlined: bool = False,
) -> None:
    drawn = {row.method for row in rows}
    lines = [(name, {"linestyle": linestyle, **styles[name]}) for name in styles if name in drawn - {"none"}]
    if "none" in drawn:
        dashed = {"linestyle": "--", "marker": ""} if linestyle else {"linestyle": ""}
        lines.insert(0, ("without compression", {**PLAIN, **dashed}))
    if front:
        lines.append(("the Pareto front", {**_FRONT}))
    if outlined:
        lines.append(("on the Pareto front of all three", {**PLAIN, **_OUTLINE, "marker": "o", "linestyle": ""}))
    if paper:
        lines.append(("the paper", {**PLAIN, "marker": "o", "linestyle": ":", "linewidth": 0.8, "markersize": 6}))
    add_legend(figure, lines)


def _axis_title(metric: Measured) -> str:
    return metric.title + (", lower is better" if metric.better == "lower" else "")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-40:] or "x"
