"""What each compressor costs, and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigain.report.panels import TASKS, Look, Metric, bars, legend, looks, panels, unit, value
from bigain.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, ...]


def pareto(rows: Sequence[Row]) -> Figure | None:
    """Accuracy and distance against cost, and against each other; None unless two rows have the same metric."""
    metrics = [(name, of) for name, of in TASKS if sum(value(of(row)) is not None for row in rows) > 1]
    both = [row for row in rows if value(row.accuracy) is not None and value(row.distance) is not None]
    if not metrics:
        return None
    figure, axes = panels(len(metrics) + (len(both) > 1), 1)
    for panel, (name, of) in zip(axes[0], metrics, strict=False):
        _against_cost(panel, rows, of, sign=-1.0 if name == "accuracy" else 1.0)
    if len(both) > 1:
        _against_each_other(axes[0][-1], both, looks(rows))
    legend(figure, rows, lines=False)
    return figure


def unbeaten(points: Sequence[Point]) -> list[bool]:
    """Which points no other is at least as low as in everything; equal points do not beat each other."""
    return [
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    ]


def _against_cost(axes: Axes, rows: Sequence[Row], of: Metric, sign: float) -> None:
    there = [(row, found) for row in rows if (found := of(row)) and found.value is not None]
    for name, look in looks(rows).items():
        mine = [(row.gflops, found) for row, found in there if row.method == name]
        if mine:
            xs, values = [x for x, _ in mine], [found.value or 0.0 for _, found in mine]
            ends = bars([found for _, found in mine])
            axes.errorbar(xs, values, yerr=ends, linestyle="", capsize=2, markersize=6, elinewidth=1, **look)
    points = [(row.gflops, sign * (found.value or 0.0)) for row, found in there]
    front = sorted({point for point, kept in zip(points, unbeaten(points), strict=True) if kept})
    axes.plot([x for x, _ in front], [sign * y for _, y in front], color="#999999", linewidth=1, zorder=0)
    axes.set_xlabel("GFLOPs per evaluation")
    axes.set_ylabel(unit(there[0][1].metric))


def _against_each_other(axes: Axes, rows: Sequence[Row], styles: dict[str, Look]) -> None:
    least, most = min(row.gflops for row in rows), max(row.gflops for row in rows)
    points = [(row.gflops, -(value(row.accuracy) or 0.0), value(row.distance) or 0.0) for row in rows]
    for row, point, kept in zip(rows, points, unbeaten(points), strict=True):
        size = 4 + 8 * (row.gflops - least) / (most - least) if most > least else 7
        look = {**styles[row.method], **({"markeredgecolor": "black", "markeredgewidth": 1.4} if kept else {})}
        axes.plot([-point[1]], [point[2]], linestyle="", markersize=size, **look)
    axes.set_xlabel(unit(rows[0].accuracy.metric if rows[0].accuracy else ""))
    axes.set_ylabel(unit(rows[0].distance.metric if rows[0].distance else ""))
