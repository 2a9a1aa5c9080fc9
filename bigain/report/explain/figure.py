"""The figure of explanations: margins, 1 / r and errors by timestep, and responses by frequency."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigain.errors import InputError
from bigain.report.explain.explanation import Band, Explanation
from bigain.report.explain.frequency import mean_over_modules
from bigain.report.explain.margins import TIME, Margins
from bigain.report.figures import KINDS, MARKERS, PLAIN, Look, add_legend, looks, panels, plain_style, save
from bigain.runs.names import method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distance between the error bars of runs, in widths of a band.
_DODGE = 0.06
_LINE: Look = {"markersize": 5, "linewidth": 1.2}
# Bounds are dashes: with a single band, no lines distinguish them from observed values.
_BOUND: Look = {"marker": "_", "markersize": 9, "markeredgewidth": 1.8}
_OBSERVED: Look = {"linestyle": "--", "linewidth": 0.9}


def draw_explanations(explanations: Sequence[Explanation], folder: Path) -> list[Path]:
    """Draw the figure of runs against one baseline into a folder, as PNG, SVG and PDF, and return the files.

    Raises:
        InputError: If a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with plain_style():
            save(draw(explanations), folder / "explain")
    except OSError as error:
        raise InputError(f"cannot write the figure to {folder}: {error.strerror}; choose another --output") from error
    return [folder / f"explain.{kind}" for kind in KINDS]


def draw(explanations: Sequence[Explanation]) -> Figure:
    """Draw margins, margins over their deviation, errors and stored responses, a panel each."""
    responses = [explanation.response for explanation in explanations]
    figure, axes = panels(2, 2) if any(responses) else panels(3, 1)
    mean, ratio, errors, *frequencies = axes.flat
    first, styles = explanations[0], [PLAIN, *_looks(explanations)]
    sides: list[Sequence[tuple[Band, Margins]]] = [[(band, band.base) for band in first.bands]]
    sides += [[(band, band.run) for band in explanation.bands] for explanation in explanations]
    for index, (style, side) in enumerate(zip(styles, sides, strict=True)):
        shift = 0.5 + _DODGE * (index - (len(sides) - 1) / 2)
        xs = [band.low + shift * (band.high - band.low) for band, _ in side]
        ys, deviations = [margins.mu for _, margins in side], [margins.sigma for _, margins in side]
        mean.errorbar(xs, ys, yerr=deviations, capsize=2, elinewidth=0.8, **_LINE, **style)
        _plot(ratio, xs, [margins.mu_over_sigma for _, margins in side], style)
        _plot(errors, xs, [100 * margins.cantelli_bound for _, margins in side], {**style, **_BOUND})
        _plot(errors, xs, [100 * margins.error for _, margins in side], {**style, **_OBSERVED})
        for x, (band, _) in zip(xs, side, strict=True):
            before, after = band.base.mu_over_sigma, band.run.mu_over_sigma
            if index and band.interval and before is not None and after is not None:
                # The interval of the change, added to the baseline's value; with few images it may miss the run's.
                down, up = after - (before + band.interval[0]), before + band.interval[1] - after
                lengths = [[max(0.0, down)], [max(0.0, up)]]
                ratio.errorbar([x], [after], yerr=lengths, capsize=2, elinewidth=0.8, color=style["color"])
    deviation = "" if first.overall.base.noise is None else " (deviation over noise)"
    intervals = any(band.interval for explanation in explanations for band in explanation.bands)
    ratio_title = f"1 / r{deviation}" + (", interval of its change" if intervals else "")
    titles = {mean: "margin, +- one deviation", ratio: ratio_title, errors: "error (%): bound, observed"}
    for panel, title in titles.items():
        panel.set(xlim=(0, TIME), xlabel="timestep band")
        panel.set_title(title, loc="left", fontsize="medium")
    for panel in (mean, ratio):
        panel.axhline(0, color="black", linewidth=0.6)
    errors.set_ylim(-2, 102)
    for panel in frequencies:
        for style, response in zip(styles[1:], responses, strict=True):
            if response is not None:
                middles = [sum(edges) / 2 for edges in itertools.pairwise(response.bands)]
                kept, destroyed = 100 * mean_over_modules(response.shares())
                _plot(panel, middles, kept, {**style, **_BOUND})
                _plot(panel, middles, destroyed, {**style, **_OBSERVED})
        panel.set(xlim=(0, 1), ylim=(0, None), xlabel="spatial frequency, 1 is the highest")
        panel.set_title("energy (%), mean over sites", loc="left", fontsize="medium")
    names = [first.comparison.names[1], *(explanation.comparison.names[0] for explanation in explanations)]
    meanings = ("bound; energy kept", "observed; energy destroyed") if frequencies else ("bound", "observed")
    symbols = zip(meanings, ({**PLAIN, **_BOUND}, {**PLAIN, "marker": "o", **_OBSERVED}), strict=True)
    add_legend(figure, [*zip(names, styles, strict=True), *symbols])
    return figure


def _looks(explanations: Sequence[Explanation]) -> list[Look]:
    """Return the look of each run: the colour of its method, and a marker of its own."""
    methods = [method(explanation.comparison.run.compressors) for explanation in explanations]
    # Runs without compression are distinguished by their models or folders.
    names = [e.comparison.names[0] if name == "none" else name for name, e in zip(methods, explanations, strict=True)]
    styles = looks(names)
    return [{**styles[name], "marker": MARKERS[index % len(MARKERS)]} for index, name in enumerate(names)]


def _plot(axes: Axes, xs: Sequence[float], ys: Sequence[float | None], style: Look) -> None:
    """Draw a line with markers; None is a gap."""
    axes.plot(xs, np.array(ys, np.float64), **{**_LINE, **style})
