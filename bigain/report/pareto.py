"""What each compressor costs, and what it keeps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigain.report.panels import Look, bars, legend, looks, panels, unit, value
from bigain.report.rows import MainMetric, Row, main_metrics
from bigain.runs.results import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, ...]


def pareto(rows: Sequence[Row]) -> Figure | None:
    """Accuracy and distance against cost, and against each other; None unless two rows have the same metric."""
    metrics = [one for one in main_metrics(rows) if len(_with(rows, one)) > 1]
    if not metrics:
        return None
    accuracies, distances = ([one for one in metrics if one.task == task] for task in TASKS)
    pairs = [pair for pair in itertools.product(accuracies, distances) if len(_with(rows, *pair)) > 1]
    figure, axes = panels(len(metrics) + len(pairs), 1)
    for panel, metric in zip(axes[0], metrics, strict=False):
        _against_cost(panel, _with(rows, metric), metric, looks(rows))
    for panel, pair in zip(axes[0][len(metrics) :], pairs, strict=True):
        _against_each_other(panel, _with(rows, *pair), *pair, looks(rows))
    legend(figure, rows, lines=False)
    return figure


def _with(rows: Sequence[Row], *metrics: MainMetric) -> list[Row]:
    """Rows that have a number for each of these."""
    return [row for row in rows if all(value(metric.of(row)) is not None for metric in metrics)]


def unbeaten(points: Sequence[Point]) -> list[bool]:
    """Which points no other is at least as low as in everything; equal points do not beat each other."""
    return [
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    ]


def _against_cost(axes: Axes, rows: Sequence[Row], metric: MainMetric, styles: dict[str, Look]) -> None:
    sign = -1.0 if metric.task == "classification" else 1.0
    there = [(row, found) for row in rows if (found := metric.of(row))]
    for name, look in styles.items():
        mine = [(row.gflops, found) for row, found in there if row.method == name]
        if mine:
            xs, values = [x for x, _ in mine], [found.value or 0.0 for _, found in mine]
            ends = bars([found for _, found in mine])
            axes.errorbar(xs, values, yerr=ends, linestyle="", capsize=2, markersize=6, elinewidth=1, **look)
    points = [(row.gflops, sign * (found.value or 0.0)) for row, found in there]
    front = sorted({point for point, kept in zip(points, unbeaten(points), strict=True) if kept})
    axes.plot([x for x, _ in front], [sign * y for _, y in front], color="#999999", linewidth=1, zorder=0)
    axes.set_xlabel("GFLOPs per evaluation")
    axes.set_ylabel(unit(metric.name))


def _against_each_other(
    axes: Axes, rows: Sequence[Row], accuracy: MainMetric, distance: MainMetric, styles: dict[str, Look]
) -> None:
    least, most = min(row.gflops for row in rows), max(row.gflops for row in rows)
    points = [(row.gflops, -(value(accuracy.of(row)) or 0.0), value(distance.of(row)) or 0.0) for row in rows]
    for row, point, kept in zip(rows, points, unbeaten(points), strict=True):
        size = 4 + 8 * (row.gflops - least) / (most - least) if most > least else 7
        look = {**styles[row.method], **({"markeredgecolor": "black", "markeredgewidth": 1.4} if kept else {})}
        axes.plot([-point[1]], [point[2]], linestyle="", markersize=size, **look)
    axes.set_xlabel(unit(accuracy.name))
    axes.set_ylabel(unit(distance.name))
