"""Accuracy and distance against compression, the paper's first figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigain.report.panels import GREY, Look, bars, legend, looks, panels, unit, value
from bigain.report.rows import MainMetric, Measured, Row, main_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TICKS = 8
_AXES = {"ratio": "tokens removed (ratio)", "factor": "downsampling factor per side", "tau": "cells merged (tau)"}


def curves(rows: Sequence[Row]) -> Figure | None:
    """A panel for each accuracy and distance, and each of ratio and factor; None without any such run."""
    kinds = [kind for kind in _AXES if any(row.strength and row.strength[0] == kind for row in rows)]
    metrics = [
        one for one in main_metrics(rows) if any(row.strength and value(one.of(row)) is not None for row in rows)
    ]
    if not kinds or not metrics:
        return None
    figure, axes = panels(len(kinds), len(metrics))
    for i, metric in enumerate(metrics):
        for j, kind in enumerate(kinds):
            _panel(axes[i][j], rows, kind, metric)
    printed = any(found and found.paper for row in rows if row.strength for found in (row.accuracy, row.distance))
    legend(figure, rows, lines=True, paper=printed)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], kind: str, metric: MainMetric) -> None:
    axes.set_ylabel(unit(metric.name))
    for name, look in looks(rows).items():
        points = [
            (row.strength[1], found)
            for row in rows
            if row.method == name and row.strength and row.strength[0] == kind and (found := metric.of(row))
        ]
        points = [(x, found) for x, found in points if found.value is not None]
        if points:
            _line(axes, points, look)
    for row in rows:
        found = metric.of(row)
        if row.method == "none" and found and found.value is not None:
            axes.axhline(found.value, color=GREY, linestyle="--", linewidth=1)
            # A line just inside the frame would otherwise lie on it.
            axes.update_datalim([(0.0, found.value)], updatex=False)
            axes.autoscale_view(scalex=False)
    steps = sorted({row.strength[1] for row in rows if row.strength and row.strength[0] == kind})
    if len(steps) <= _MOST_TICKS:
        axes.set_xticks(steps, [f"{step:g}" for step in steps])
    axes.set_xlabel(_AXES[kind])


def _line(axes: Axes, points: Sequence[tuple[float, Measured]], look: Look) -> None:
    xs, values = [x for x, _ in points], [found.value or 0.0 for _, found in points]
    axes.errorbar(xs, values, yerr=bars([found for _, found in points]), capsize=2, markersize=5, linewidth=1.2, **look)
    printed = [(x, paper) for x, found in points if found.paper for paper, _ in found.paper.values]
    if printed:
        hollow = {**look, "markerfacecolor": "none", "linestyle": ":", "linewidth": 0.8, "markersize": 7}
        axes.plot([x for x, _ in printed], [paper for _, paper in printed], **hollow)
