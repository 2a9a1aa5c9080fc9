"""The figures of explanations: margins, 1 / r, bound and error by timestep, and the frequency response."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigain.errors import InputError
from bigain.report.explain.explanation import Band, Explanation
from bigain.report.explain.frequency import mean_shares
from bigain.report.explain.margins import Margins
from bigain.report.figures import PLAIN, Look, add_legend, look, panels, plain_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distance between the error bars of runs, in widths of a band.
_STEP = 0.06
_DASHED: Look = {"linestyle": "--", "linewidth": 0.9}
# A run with its margins, or the baseline with those of the first run.
_Line = tuple[Look, Sequence[tuple[Band, Margins]]]


def draw_explanations(explanations: Sequence[Explanation], folder: Path) -> list[Path]:
    """Draw a figure for each baseline, as PNG and SVG.

    Args:
        explanations: In the order of their baselines.
        folder: Folder to write to.

    Returns:
        The files.

    Raises:
        InputError: If a file cannot be written.
    """
    groups = itertools.groupby(explanations, lambda explanation: explanation.comparison.base.path)
    names = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with plain_style():
            for number, (_, group) in enumerate(groups, 1):
                names.append(f"explain-{number}" if number > 1 else "explain")
                save(_draw([*group]), folder / names[-1])
    except OSError as error:
        raise InputError(f"cannot write the figure to {folder}: {error.strerror}; choose another --output") from error
    return [folder / f"{name}.{kind}" for name in names for kind in ("png", "svg")]


def _draw(explanations: Sequence[Explanation]) -> Figure:
    """Draw four panels, with all runs in each: margins, the same over their deviation, errors, frequency response."""
    figure, axes = panels(2, 2)
    (mean, ratio), (bound, response) = axes
    first = explanations[0]
    lines: list[_Line] = [(PLAIN, [(band, band.base) for band in first.bands])]
    lines += [(look(i), [(band, band.run) for band in one.bands]) for i, one in enumerate(explanations)]
    _margins(mean, first.bands, lines)
    _by_time(ratio, "margin / deviation = 1 / r", lines, lambda margins: margins.mu_over_sigma)
    ratio.axhline(0, color="black", linewidth=0.6)
    _by_time(bound, "error (%): bound, observed", lines, lambda margins: 100 * margins.cantelli_bound)
    _by_time(bound, "error (%): bound, observed", lines, lambda margins: 100 * margins.error, _DASHED)
    bound.set_ylim(-2, 102)
    _response(response, explanations)
    names = [first.comparison.names[1], *(one.comparison.names[0] for one in explanations)]
    styles = [(name, style) for name, (style, _) in zip(names, lines, strict=True)]
    meanings = [("bound; energy kept", {}), ("observed; energy destroyed", _DASHED)]
    add_legend(figure, styles + [(name, {"color": "black", **style}) for name, style in meanings])
    return figure


def _margins(axes: Axes, bands: Sequence[Band], lines: Sequence[_Line]) -> None:
    for place, (style, points) in enumerate(lines):
        shift = _STEP * (place - (len(lines) - 1) / 2)
        xs = [(band.low + band.high) / 2 + (band.high - band.low) * shift for band, _ in points]
        ys, deviations = [margins.mu for _, margins in points], [margins.sigma for _, margins in points]
        axes.errorbar(xs, ys, yerr=deviations, capsize=2, markersize=5, linewidth=1.2, elinewidth=0.8, **style)
    axes.axhline(0, color="black", linewidth=0.6)
    # Margins at late timesteps are a hundredth of those at early ones, and of either sign.
    deviations = [band.base.sigma for band in bands if band.base.sigma > 0]
    if deviations:
        axes.set_yscale("symlog", linthresh=max(deviations))
        axes.yaxis.set_major_formatter("{x:g}")
    _time_axis(axes, "margin, +- one deviation")


def _by_time(
    axes: Axes, title: str, lines: Sequence[_Line], of: Callable[[Margins], float | None], extra: Look | None = None
) -> None:
    for style, points in lines:
        _plot(axes, [((band.low + band.high) / 2, of(margins)) for band, margins in points], {**style, **(extra or {})})
    _time_axis(axes, title)


def _time_axis(axes: Axes, title: str) -> None:
    axes.set_xlim(0, 1000)
    # A label at 1000 would touch the legend.
    axes.set_xticks(range(0, 1000, 200))
    axes.set_xlabel("timestep")
    axes.set_title(title, loc="left", fontsize="medium")


def _response(axes: Axes, explanations: Sequence[Explanation]) -> None:
    for number, response in enumerate(one.response for one in explanations):
        if response is not None:
            middles, mean = [(a + b) / 2 for a, b in itertools.pairwise(response.bands)], mean_shares(response.by_band)
            for shares, extra in ((mean.kept, {}), (mean.destroyed, _DASHED)):
                percents = [None if share is None else 100 * share for share in shares]
                _plot(axes, list(zip(middles, percents, strict=False)), {**look(number), **extra})
    if not axes.lines:
        axes.text(0.5, 0.5, "no frequency response\nis stored", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("spatial frequency, 1 is the highest")
    axes.set_title("energy (%), mean over sites", loc="left", fontsize="medium")


def _plot(axes: Axes, points: Sequence[tuple[float, float | None]], style: Look) -> None:
    known: list[tuple[float, Any]] = [(x, y) for x, y in points if y is not None]
    axes.plot([x for x, _ in known], [y for _, y in known], **{"markersize": 5, "linewidth": 1.2, **style})
