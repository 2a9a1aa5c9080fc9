"""An explanation in plain sentences and small tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from bigain.report.explain.explanation import Band, Explanation
from bigain.report.explain.frequency import Kept, Response, mean_share
from bigain.report.explain.margins import Margins

_STORE = (
    "No frequency response is stored; run it again with --trainer.callbacks+=bigain.callbacks.FrequencyResponse, "
    "which goes to another directory."
)


_EXPECTED = {
    "helps": "by Theorem 1 compression should help",
    "hurts": "by Theorem 1 compression should hurt",
    "level": "Theorem 1 sees no difference",
    None: "where no mean margin is positive, Theorem 1 says nothing",
}


def told(one: Explanation) -> list[str]:
    """What came out for one run, line by line."""
    lines = [f"{one.name}, {one.comparison.run.path}", ""]
    lines += [*_response(one), "", *_margins(one), "", one.comparison.sentence(), _verdict(one)]
    return [*lines, *one.comparison.remarks]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield f"  {'  '.join(cells)}".rstrip()


def _response(one: Explanation) -> list[str]:
    response = one.response
    if response is None:
        return [_STORE] if one.comparison.run.compressors else ["Nothing is compressed, so no frequency is lost."]
    lines = [f"Not measured, since it is not known what is left of a token: {name}." for name in response.not_measured]
    if not response.sites:
        return lines or ["The stored frequency response has no site."]
    sites = response.by_band
    edges = response.bands
    header = ["frequency, 1 is the highest", *(f"{a:.2g}-{b:.2g}" for a, b in itertools.pairwise(edges))]
    means = Kept("mean of these", mean_share([s.kept for s in sites]), mean_share([s.destroyed for s in sites]))
    rows = [[site.name, *map(_pair, site.kept, site.destroyed)] for site in ([*sites, means] if sites[1:] else sites)]
    measured = f"{_count(response.images, 'image')}, {_count(response.batches, 'batch', 'batches')}"
    lines.append(f"Energy kept / destroyed, in percent of the energy of each band of frequencies ({measured}):")
    lost, seen = response.left_out
    if lost:
        lines.append(f"Left out: up to {lost:,} of {seen:,} rows of a site, whose values were not finite.")
    lines += [*aligned([header, *rows]), _quarters(one.name, response), _by_time(response)]
    return lines


def _quarters(name: str, response: Response) -> str:
    high, low = response.together(response.highest), response.together(response.lowest)
    worst = max(high, key=lambda site: site.destroyed[0] or 0.0)
    kept, destroyed = mean_share([s.kept for s in high])[0], mean_share([s.destroyed for s in high])[0]
    low_kept, low_destroyed = mean_share([s.kept for s in low])[0], mean_share([s.destroyed for s in low])[0]
    sites = f"on average over {len(high)} modules; most at {worst.name}" if high[1:] else f"at {worst.name}"
    return (
        f"{name} keeps {_percent(kept)} of the energy {_place(response, response.highest, 'highest')}, with an error "
        f"of {_percent(destroyed)} of it ({sites}, {_percent(worst.destroyed[0])}); "
        f"{_place(response, response.lowest, 'lowest')} it keeps {_percent(low_kept)}, with an error of "
        f"{_percent(low_destroyed)}."
    )


def _place(response: Response, bands: range, end: str) -> str:
    low, high = response.bands[bands[0]], response.bands[bands[-1] + 1]
    quarter = high - low == 1 / 4
    return f"in the {end} quarter of frequencies" if quarter else f"at frequencies {low:.2g}-{high:.2g}"


def _by_time(response: Response) -> str:
    shares = mean_share([site.destroyed for site in response.by_time(response.highest)])
    edges = zip(response.timesteps, response.timesteps[1:], strict=False)
    parts = [
        f"{_percent(value)} at timesteps {low:.0f}-{high - 1:.0f}"
        for (low, high), value in zip(edges, shares, strict=True)
        if value is not None
    ]
    return f"That error by timestep: {', '.join(parts)}."


def _margins(one: Explanation) -> list[str]:
    whole = one.whole
    images = len(whole.run.mean)
    trials = int(whole.run.trials.sum())
    lines = [
        f"Margins of the true class to the best of {one.classes - 1} wrong ones, on the trials in which both runs "
        f"evaluated every class (n = {_count(images, 'image')}, {trials:,} trials, {whole.run.n:.3g} per image):"
    ]
    header = ["timesteps", "trials", "margin", "", "deviation", "", "r", "", "theorem", "", "bound", "", "wrong", ""]
    header = [cell or "->" for cell in header]
    lines += aligned([header, *(_row(band, band.name) for band in one.bands), _row(whole, "all")])
    changes = [(band.change, band) for band in one.bands if band.change is not None]
    least, most = min(changes, key=_first, default=None), max(changes, key=_first, default=None)
    if len(changes) > 1 and least and least[0] < 0:
        lines.append(f"margin / deviation falls most at timesteps {_change(least[1])}.")
    if len(changes) > 1 and most and most[0] > 0:
        lines.append(f"margin / deviation rises most at timesteps {_change(most[1])}.")
    return lines


def _first(pair: tuple[float, Band]) -> float:
    return pair[0]


def _change(band: Band) -> str:
    return f"{band.name}, from {_number(band.base.separation)} to {_number(band.run.separation)}{_interval(band)}"


def _row(band: Band, name: str) -> list[str]:
    a, b = band.base, band.run
    cells = [name, f"{b.n:.3g}", f"{a.mu:.4g}", f"{b.mu:.4g}", f"{a.sigma:.4g}", f"{b.sigma:.4g}", _r(a), _r(b)]
    cells += [_percent(a.theorem), _percent(b.theorem), _percent(a.bound), _percent(b.bound)]
    return [*cells, _percent(a.error), _percent(b.error)]


def _verdict(one: Explanation) -> str:
    """What Theorem 1 says of these margins, beside what happened."""
    whole, a, b = one.whole, one.whole.base, one.whole.run
    moved = "fell" if b.mu < a.mu else "rose" if b.mu > a.mu else "stayed"
    start = f"The margin {moved} from {a.mu:.4g} to {b.mu:.4g}, r went from {_r(a)} to {_r(b)}"
    start += f" and 1/r from {_number(a.separation)} to {_number(b.separation)}{_interval(whole)}"
    doubt = "" if whole.certain or not whole.change else ", though so few images cannot tell the change from none"
    wrong = f"the share that is wrong on these trials from {_percent(a.error)} to {_percent(b.error)}"
    return (
        f"{start}: {_EXPECTED[whole.criterion]}{doubt}. Its bound went from {_percent(a.theorem)} to "
        f"{_percent(b.theorem)}, {wrong}; with all trials accuracy changed by "
        f"{100 * one.comparison.counts.difference:+.1f} points."
    )


def _interval(band: Band) -> str:
    if band.interval is None:
        return " (too few images for an interval)"
    return f" (95 % interval of the change {band.interval[0]:+.3g} to {band.interval[1]:+.3g})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _r(of: Margins) -> str:
    return _number(of.r)


def _pair(kept: float | None, destroyed: float | None) -> str:
    return "-" if kept is None or destroyed is None else f"{100 * kept:.0f}/{100 * destroyed:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %" if share < 1 else f"{100 * share:.0f} %"


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
