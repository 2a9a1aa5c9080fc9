"""Curves and matrices over all images of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bigain.inspector.errors_by_time import ErrorsByTime
from bigain.report.figures import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

_NAMES = ("true class", "strongest rival", "second rival", "third rival")
# Classes that are named on an axis, and those whose counts are written out.
_NAMED, _COUNTED = 40, 20
_LONGEST = 28


def error_figure(found: ErrorsByTime) -> Figure:
    """Errors of the true class and its rivals by timestep, and by how much the rivals lie above."""
    figure, (level, margin) = _figure(1, 2, (9.6, 3.6))
    for name, colour, errors in zip(_NAMES, COLOURS, (found.true, *found.rivals), strict=False):
        style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1.2, "label": name}
        level.plot(found.timesteps, errors, **style)
        if errors is not found.true:
            margin.plot(found.timesteps, errors - found.true, **style)
    level.set_yscale("log")
    level.yaxis.set_major_formatter("{x:g}")
    level.set_title(f"mean error of {found.images:,} images", loc="left", fontsize="medium")
    level.legend()
    margin.axhline(0, color="black", linewidth=0.8)
    _symmetric(margin, np.abs(found.rivals - found.true))
    margin.set_title("error above the true class's", loc="left", fontsize="medium")
    for axes in (level, margin):
        axes.set_xlabel("timestep")
        axes.set_xlim(0, 1000)
    return figure


def _symmetric(axes: Axes, sizes: Floats) -> None:
    """A scale on which margins of early and late timesteps are seen, of either sign."""
    known = sizes[np.isfinite(sizes) & (sizes > 0)]
    if known.size:
        axes.set_yscale("symlog", linthresh=float(np.median(known)))
        axes.yaxis.set_major_formatter("{x:g}")


def class_figure(found: ErrorsByTime, names: Sequence[str]) -> Figure:
    """Margin to the strongest rival, by true class and timestep; the classes with the lowest ones if there are many."""
    import matplotlib

    there = np.flatnonzero(np.isfinite(found.by_class).any(1))
    # By the sign of each timestep's margin, for their sizes differ by orders of magnitude.
    scale = np.nanmax(np.abs(found.by_class), axis=0)
    relative = found.by_class / np.where(scale > 0, scale, 1)
    if len(there) > _NAMED:
        there = np.sort(there[np.nanmean(relative[there], 1).argsort(kind="stable")[:_NAMED]])
    figure, (axes,) = _figure(1, 1, (6.4, 1.4 + 0.2 * max(4, len(there))))
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="#bbbbbb")
    drawn = axes.imshow(relative[there], aspect="auto", cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
    axes.set_yticks(range(len(there)), [_short(names[int(k)]) for k in there])
    shown = np.unique(np.linspace(0, len(found.timesteps) - 1, min(10, len(found.timesteps))).round().astype(int))
    axes.set_xticks(shown, [f"{found.timesteps[i]:g}" for i in shown])
    axes.set_xlabel("timestep")
    axes.set_title("strongest rival's error above the true class's, by true class", loc="left", fontsize="medium")
    axes.grid(visible=False)
    figure.colorbar(drawn, ax=axes, label="of the timestep's largest")
    return figure


def survival_figure(shares: Floats, chance: Sequence[float]) -> Figure:
    """Share of true classes left after each stage, beside that of all classes."""
    figure, (axes,) = _figure(1, 1, (4.8, 3.4))
    stages = np.arange(len(shares))
    axes.plot(stages, 100 * shares, color=COLOURS[0], marker="o", label="true class")
    axes.plot(stages[: len(chance)], 100 * np.asarray(chance), color=GREY, linestyle="--", label="by chance")
    axes.set_xticks(stages, ["start", *(f"stage {stage}" for stage in stages[1:])])
    axes.set_ylim(0, 104)
    axes.set_ylabel("left (%)")
    axes.set_title("survival of the true class", loc="left", fontsize="medium")
    axes.legend()
    return figure


def confusion_figure(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Predictions by true class, as shares of its images; counts are written where there is room."""
    counts = np.asarray(matrix)
    side = 2.4 + (0.28 if len(counts) <= _COUNTED else 0.16 if len(counts) <= _NAMED else 0.03) * len(counts)
    figure, (axes,) = _figure(1, 1, (side + 0.6, side))
    total = counts.sum(1, keepdims=True)
    shares = np.divide(100 * counts, total, out=np.zeros(counts.shape), where=total > 0)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if len(counts) <= _COUNTED:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 60 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=7)
    if len(counts) <= _NAMED:
        labels = [_short(name) for name in names]
        axes.set_xticks(range(len(counts)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(counts)), labels, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("confusion matrix", loc="left", fontsize="medium")
    axes.grid(visible=False)
    figure.colorbar(drawn, ax=axes, label="of the true class's images (%)", shrink=0.8)
    return figure


def rendered(figure: Figure) -> Image.Image:
    """A figure as pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Drawn once; to save a figure draws it twice.
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _figure(height: int, width: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=100)
    return figure, figure.subplots(height, width, squeeze=False)[0]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
