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
from bigain.report.figures import KINDS, MARKERS, PLAIN, Look, add_legend, looks, panels, plain_style, plain_ticks, save
from bigain.runs.names import method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distance between the error bars of runs, in widths of a band.
_STEP = 0.06
_DASHED: Look = {"linestyle": "--", "linewidth": 0.9}
# A run with its margins, or the baseline with those of the first run, each with its place on the axis.
_Line = tuple[Look, Sequence[tuple[float, Band, Margins]]]


def draw_explanations(explanations: Sequence[Explanation], folder: Path) -> list[Path]:
    """Draw a figure for each baseline, as PNG, SVG and PDF.

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
    return [folder / f"{name}.{kind}" for name in names for kind in KINDS]


def _draw(explanations: Sequence[Explanation]) -> Figure:
    """Draw a panel each, with all runs, of margins, the same over their deviation, errors, and stored responses."""
    measured = any(one.response is not None for one in explanations)
    figure, axes = panels(2, 2) if measured else panels(3, 1)
    mean, ratio, bound, *response = axes.flat
    first, styles = explanations[0], _looks(explanations)
    sides = [(PLAIN, [(band, band.base) for band in first.bands])]
    sides += [
        (style, [(band, band.run) for band in one.bands]) for style, one in zip(styles, explanations, strict=True)
    ]
    lines: list[_Line] = []
    for place, (style, points) in enumerate(sides):
        shift = 0.5 + _STEP * (place - (len(sides) - 1) / 2)
        lines.append((style, [(band.low + shift * (band.high - band.low), band, margins) for band, margins in points]))
    _margins(mean, first.bands, lines)
    _by_time(ratio, "1 / r = margin / deviation, interval of its change", lines, lambda margins: margins.mu_over_sigma)
    _changes(ratio, lines[1:])
    ratio.axhline(0, color="black", linewidth=0.6)
    _by_time(bound, "error (%): bound, observed", lines, lambda margins: 100 * margins.cantelli_bound)
    _by_time(bound, "error (%): bound, observed", lines, lambda margins: 100 * margins.error, _DASHED)
    bound.set_ylim(-2, 102)
    for panel in response:
        _response(panel, explanations, styles)
    names = [first.comparison.names[1], *(one.comparison.names[0] for one in explanations)]
    named = [(name, style) for name, (style, _) in zip(names, lines, strict=True)]
    meanings = [("bound", {}), ("observed", _DASHED)]
    if measured:
        meanings = [("bound; energy kept", {}), ("observed; energy destroyed", _DASHED)]
    add_legend(figure, named + [(name, {"color": "black", **style}) for name, style in meanings])
    return figure


def _looks(explanations: Sequence[Explanation]) -> list[Look]:
    """Return the look of each run: the colour of its method, with markers that tell runs of one method apart."""
    methods = [method(one.comparison.run.compressors) for one in explanations]
    # Two runs without compression are of different models or folders.
    names = [
        one.comparison.names[0] if name == "none" else name for name, one in zip(methods, explanations, strict=True)
    ]
    styles = looks(names)
    return [
        {
            **styles[name],
            "marker": MARKERS[(MARKERS.index(styles[name]["marker"]) + names[:i].count(name)) % len(MARKERS)],
        }
        for i, name in enumerate(names)
    ]


def _changes(axes: Axes, lines: Sequence[_Line]) -> None:
    """Draw the interval of the change of 1 / r, from the baseline's value, around the value of each run."""
    for style, points in lines:
        for x, band, margins in points:
            before, after = band.base.mu_over_sigma, margins.mu_over_sigma
            if band.interval is not None and before is not None and after is not None:
                # The interval of few images need not contain the value.
                down, up = after - (before + band.interval[0]), before + band.interval[1] - after
                ends = [[max(0.0, down)], [max(0.0, up)]]
                axes.errorbar([x], [after], yerr=ends, capsize=2, elinewidth=0.8, color=style["color"])


def _margins(axes: Axes, bands: Sequence[Band], lines: Sequence[_Line]) -> None:
    for style, points in lines:
        xs = [x for x, _, _ in points]
        ys, deviations = [margins.mu for *_, margins in points], [margins.sigma for *_, margins in points]
        axes.errorbar(xs, ys, yerr=deviations, capsize=2, markersize=5, linewidth=1.2, elinewidth=0.8, **style)
    axes.axhline(0, color="black", linewidth=0.6)
    # Margins at late timesteps are a hundredth of those at early ones, and of either sign.
    deviations = [band.base.sigma for band in bands if band.base.sigma > 0]
    if deviations:
        axes.set_yscale("symlog", linthresh=max(deviations))
        plain_ticks(axes.yaxis)
    _time_axis(axes, "margin, +- one deviation")


def _by_time(
    axes: Axes, title: str, lines: Sequence[_Line], of: Callable[[Margins], float | None], extra: Look | None = None
) -> None:
    for style, points in lines:
        _plot(axes, [(x, of(margins)) for x, _, margins in points], {**style, **(extra or {})})
    _time_axis(axes, title)


def _time_axis(axes: Axes, title: str) -> None:
    axes.set_xlim(0, 1000)
    axes.set_xlabel("timestep")
    axes.set_title(title, loc="left", fontsize="medium")


def _response(axes: Axes, explanations: Sequence[Explanation], styles: Sequence[Look]) -> None:
    for style, response in zip(styles, (one.response for one in explanations), strict=True):
        if response is not None:
            middles, mean = [(a + b) / 2 for a, b in itertools.pairwise(response.bands)], mean_shares(response.by_band)
            for shares, extra in ((mean.kept, {}), (mean.destroyed, _DASHED)):
                percents = [None if share is None else 100 * share for share in shares]
                _plot(axes, list(zip(middles, percents, strict=False)), {**style, **extra})
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("spatial frequency, 1 is the highest")
    axes.set_title("energy (%), mean over sites", loc="left", fontsize="medium")


def _plot(axes: Axes, points: Sequence[tuple[float, float | None]], style: Look) -> None:
    known: list[tuple[float, Any]] = [(x, y) for x, y in points if y is not None]
    axes.plot([x for x, _ in known], [y for _, y in known], **{"markersize": 5, "linewidth": 1.2, **style})
