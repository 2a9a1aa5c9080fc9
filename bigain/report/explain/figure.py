"""The figure of an explanation: margins, 1 / r, bound and error by timestep, and the frequency response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bigain.report.explain.explanation import Band, Explanation
from bigain.report.explain.frequency import Response, mean_share
from bigain.report.explain.margins import Margins
from bigain.report.figures import PLAIN, Look, add_legend, look, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Margins of the true class to its best rival by timestep, the same over their deviation, Cantelli's bound (solid) "
    "and the share of images that is wrong (dashed); by spatial frequency what is kept (solid) and destroyed (dashed)."
)
# Of a band's width, by which runs stand beside each other.
_STEP = 0.06
_DASHED: Look = {"linestyle": "--", "linewidth": 0.9}


def draw_explanations(found: Sequence[Explanation]) -> Figure:
    """Four panels, with all runs in each."""
    figure, axes = panels(2, 2)
    styles = [look(number) for number in range(len(found))]
    (mean, ratio), (bound, response) = axes
    _margins(mean, found, styles)
    _by_time(ratio, found, styles, "margin / deviation = 1 / r", lambda of: of.separation, {})
    ratio.axhline(0, color="black", linewidth=0.6)
    _by_time(bound, found, styles, "error (%): bound, observed", lambda of: 100 * of.bound, {})
    _by_time(bound, found, styles, None, lambda of: 100 * of.error, _DASHED)
    bound.set_ylim(-2, 102)
    _responses(response, found, styles)
    names = [found[0].comparison.names[1], *(one.name for one in found)]
    solid: Look = {"color": "black"}
    lines = [*zip(names, [PLAIN, *styles], strict=True), ("bound; energy kept", solid)]
    add_legend(figure, [*lines, ("observed; energy destroyed", {**solid, **_DASHED})])
    return figure


def _lines(found: Sequence[Explanation], styles: Sequence[Look]) -> list[tuple[Sequence[Band], bool, Look, int]]:
    """Bands, whether the baseline's side is meant, look and place of each line; the baseline of the first run first."""
    first = (found[0].bands, True, PLAIN, 0)
    return [first, *((one.bands, False, style, i) for i, (one, style) in enumerate(zip(found, styles, strict=True), 1))]


def _middle(band: Band, place: int, lines: int) -> float:
    width = band.high - band.low
    return (band.low + band.high) / 2 + width * _STEP * (place - (lines - 1) / 2)


def _margins(axes: Axes, found: Sequence[Explanation], styles: Sequence[Look]) -> None:
    lines = _lines(found, styles)
    for bands, plain, style, place in lines:
        sides = [band.base if plain else band.run for band in bands]
        xs = [_middle(band, place, len(lines)) for band in bands]
        means, deviations = [side.mu for side in sides], [side.sigma for side in sides]
        axes.errorbar(xs, means, yerr=deviations, capsize=2, markersize=5, linewidth=1.2, elinewidth=0.8, **style)
    axes.axhline(0, color="black", linewidth=0.6)
    # Margins at late timesteps are a hundredth of those at early ones, and of either sign.
    deviations = [band.base.sigma for band in found[0].bands if band.base.sigma > 0]
    if deviations:
        axes.set_yscale("symlog", linthresh=max(deviations))
        axes.yaxis.set_major_formatter("{x:g}")
    _time(axes)
    axes.set_title("margin, +- one deviation", loc="left", fontsize="medium")


def _time(axes: Axes) -> None:
    axes.set_xlim(0, 1000)
    # Not at 1000, whose label would touch the legend.
    axes.set_xticks(range(0, 1000, 200))
    axes.set_xlabel("timestep")


def _by_time(
    axes: Axes,
    found: Sequence[Explanation],
    styles: Sequence[Look],
    label: str | None,
    of: Callable[[Margins], float | None],
    look: Look,
) -> None:
    for bands, plain, style, _ in _lines(found, styles):
        points = [((band.low + band.high) / 2, of(band.base if plain else band.run)) for band in bands]
        there = [(x, y) for x, y in points if y is not None]
        axes.plot([x for x, _ in there], [y for _, y in there], **{"markersize": 5, "linewidth": 1.2, **style, **look})
    _time(axes)
    if label is not None:
        axes.set_title(label, loc="left", fontsize="medium")


def _responses(axes: Axes, found: Sequence[Explanation], styles: Sequence[Look]) -> None:
    drawn = [(one.response, style) for one, style in zip(found, styles, strict=True) if one.response is not None]
    for response, style in drawn:
        sites = response.by_band
        _response(axes, response, mean_share([site.kept for site in sites]), style)
        _response(axes, response, mean_share([site.destroyed for site in sites]), {**style, **_DASHED})
    if not drawn:
        axes.text(0.5, 0.5, "no frequency response\nis stored", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("spatial frequency, 1 is the highest")
    axes.set_title("energy (%), mean over sites", loc="left", fontsize="medium")


def _response(axes: Axes, response: Response, shares: Sequence[float | None], look: Look) -> None:
    middles = [(a + b) / 2 for a, b in zip(response.bands, response.bands[1:], strict=False)]
    there = [(x, 100 * share) for x, share in zip(middles, shares, strict=False) if share is not None]
    axes.plot([x for x, _ in there], [y for _, y in there], **{"markersize": 5, "linewidth": 1.2, **look})
