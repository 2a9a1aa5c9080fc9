"""Runs against one of them, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigain.errors import InputError
from bigain.report.pairing import Differences, Outcomes, differences, images_differ, outcomes, pair
from bigain.report.statistics import ALPHA, ENOUGH, Paired, difference_interval, holm, mcnemar, smallest_detectable
from bigain.runs.names import label
from bigain.runs.results import Run

# What to know of them, for whoever prints some.
INTERVALS = (
    "+- is half the 95 % interval: paired bootstrap, or where fewer than "
    f"{ENOUGH} images are discordant the score interval of a paired difference"
)
# Of a comparison in files; differences are in points.
COLUMNS = (
    "run",
    "base",
    "compressor",
    "base_compressor",
    "n",
    "difference",
    "low",
    "high",
    "interval",
    "discordant",
    "only_run_right",
    "only_base_right",
    "p",
    "p_corrected",
    "tests",
    "significant",
    "smallest_detectable",
    "differs",
    "also_differs",
)


class UnlikeError(InputError):
    """Two runs that are whole differ in more than the compressor."""


@dataclass(frozen=True)
class Comparison:
    """One run against the base run.

    Attributes:
        run: The run.
        base: The run it is compared with.
        names: What the two are called in the sentence.
        counts: Discordant images; `first` is the run.
        p: Exact McNemar test.
        p_corrected: The same, corrected for all runs that were compared with this base (Holm).
        tests: How many those are.
        low: Lower end of the 95 % interval of the accuracy difference, in [-1, 1]: paired bootstrap, or score interval.
        high: Its upper end.
        detectable: Smallest difference that so many images could show; None if none.
        differs: What differs besides the compressors.
    """

    run: Run
    base: Run
    names: tuple[str, str]
    counts: Paired
    p: float
    p_corrected: float
    tests: int
    low: float
    high: float
    detectable: float | None
    differs: Differences

    @property
    def shown(self) -> bool:
        """Whether the difference is significant at 0.05 after correction."""
        return self.p_corrected < ALPHA

    @property
    def interval(self) -> str:
        """What kind of interval it is: `bootstrap` or `score`."""
        return "bootstrap" if self.counts.discordant >= ENOUGH else "score"

    def sentence(self) -> str:
        """What came out, in plain words; the better of the two comes first if one is."""
        counts = self.counts
        ends, right = (self.low, self.high), (counts.first, counts.second)
        if self.shown and counts.difference < 0:
            one, other, ends, right = *reversed(self.names), (-self.high, -self.low), right[::-1]
        else:
            one, other = self.names
        low, high = 100 * ends[0], 100 * ends[1]
        # The usual kind goes without saying.
        kind = "interval" if self.interval == "bootstrap" else f"{self.interval} interval"
        told = f"{self._verdict(one, other)} (95 % {kind} {low:.1f} to {high:.1f}, n = {counts.n:,}; "
        correction = (
            f", p = {p_text(self.p_corrected)} with correction for {self.tests} tests" if self.tests > 1 else ""
        )
        told += f"McNemar p = {p_text(self.p)}{correction})"
        if not counts.discordant:
            return f"{told}; there is no discordant image."
        discordant = f"{counts.discordant:,} discordant image{'s' if counts.discordant > 1 else ''}"
        return f"{told}; of {discordant} {one} gets {right[0]:,} right, {other} {right[1]:,}.{self._power()}"

    def _verdict(self, one: str, other: str) -> str:
        points = 100 * self.counts.difference
        size = f"{abs(points):.1f} +- {50 * (self.high - self.low):.1f} points"
        if self.shown:
            return f"{one} beats {other} by {size}"
        if not points:
            return f"{one} and {other} are level"
        return f"{one} is {size} {'above' if points > 0 else 'below'} {other}, which is no significant difference"

    def _power(self) -> str:
        if self.detectable is None and self.shown:
            return ""
        if self.detectable is None:
            return f" n = {self.counts.n:,} is too few to detect any difference with 80 % power."
        return f" n = {self.counts.n:,} detects {100 * self.detectable:.1f} points with 80 % power."

    def row(self) -> dict[str, Any]:
        """Plain values for a file; differences are in points."""
        values = (
            str(self.run.path),
            str(self.base.path),
            self.names[0],
            self.names[1],
            self.counts.n,
            100 * self.counts.difference,
            100 * self.low,
            100 * self.high,
            self.interval,
            self.counts.discordant,
            self.counts.first,
            self.counts.second,
            self.p,
            self.p_corrected,
            self.tests,
            self.shown,
            None if self.detectable is None else 100 * self.detectable,
            list(self.differs.forbidding),
            list(self.differs.told),
        )
        return dict(zip(COLUMNS, values, strict=True))


def compare(base: Run, others: Sequence[Run], allowed: bool = False) -> tuple[list[Comparison], list[InputError]]:
    """Compare runs with one of them.

    Args:
        base: The run that the others are compared with.
        others: Those runs.
        allowed: Compare although images, seed, protocol or versions differ, on the images that both have.

    Returns:
        Comparisons in the order of `others`, and why each other run is not among them, with its name.

    Raises:
        InputError: If the base run cannot be compared with anything.
    """
    start = outcomes(base)
    counted: list[tuple[Run, Paired, Differences]] = []
    refused: list[InputError] = []
    for run in others:
        try:
            counted.append((run, *_count(run, base, start, allowed)))
        except InputError as error:
            refused.append(error)
    p = [mcnemar(counts) for _, counts, _ in counted]
    tests = len(counted)
    found = [
        Comparison(
            *(run, base, _names(run, base), counts, p[i], corrected, tests, *difference_interval(counts)),
            smallest_detectable(counts, tests),
            differs,
        )
        for i, ((run, counts, differs), corrected) in enumerate(zip(counted, holm(p), strict=True))
    ]
    return found, refused


def _count(run: Run, base: Run, start: Outcomes, allowed: bool) -> tuple[Paired, Differences]:
    if run.path.resolve() == base.path.resolve():
        raise InputError(f"{run.path} is the base itself")
    mine = outcomes(run)
    found = differences(run, base, images_differ(mine, start))
    if found.forbidding and not allowed:
        told = "; ".join(found.forbidding)
        raise UnlikeError(
            f"{run.path} and {base.path} differ in more than the compressor: {told}; compare runs that agree in these, "
            "or give --allow-differences to pair the images that both have"
        )
    return pair(mine, start, (str(run.path), str(base.path))), found


def _names(run: Run, base: Run) -> tuple[str, str]:
    """Compressors, and directories where those say nothing."""
    mine, theirs = label(run.compressors), label(base.compressors)
    if run.model != base.model:
        mine, theirs = f"{mine} on {run.model}", f"{theirs} on {base.model}"
    if mine != theirs:
        return mine, theirs
    return f"{run.path} ({mine})", f"{base.path} ({theirs})"


def p_text(p: float) -> str:
    """A p-value in two digits, or its order of magnitude."""
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"
