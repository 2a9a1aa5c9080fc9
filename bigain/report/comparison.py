"""Compare runs with a base run, image by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigain.errors import InputError
from bigain.report.pairing import Ids, Outcomes, differences, outcomes, pair
from bigain.report.statistics import (
    ALPHA,
    ENOUGH,
    Paired,
    difference_interval,
    holm,
    holm_levels,
    mcnemar,
    smallest_detectable,
)
from bigain.runs.names import label
from bigain.runs.numbers import decimals
from bigain.runs.results import Run

# Explains `+-` wherever comparisons are printed.
INTERVALS = (
    f"+- is half the interval: paired bootstrap, with fewer than {ENOUGH} discordant images the score interval of a "
    "paired difference, or an exact one where these contradict the test. It is a 95 % interval; of several comparisons "
    "each has the level at which Holm's method tests it. It excludes 0 exactly if the difference is significant"
)


class UnlikeError(InputError):
    """Two finished runs differ in more than the compressor."""


@dataclass(frozen=True)
class Comparison:
    """One run against the base run.

    Attributes:
        run: The run.
        base: The run it is compared with.
        names: Names of the run and the base in sentences.
        counts: Numbers of discordant images; `first` is the run.
        p: P-value of the exact McNemar test.
        p_corrected: The same, corrected for all runs compared with this base (Holm).
        tests: Number of those runs.
        level: Level at which Holm's method tests the difference; 0.05 for a single run.
        low: Lower end of the interval of the accuracy difference at this level, in [-1, 1].
        high: Upper end of the interval, which excludes 0 exactly if the difference is significant.
        interval: Kind of the interval: `bootstrap`, `score` or `exact`.
        detectable: Smallest difference that this number of images could show; None if none.
        blocking: Differences besides the compressors that make a comparison misleading.
        minor: Other differences.
    """

    run: Run
    base: Run
    names: tuple[str, str]
    counts: Paired
    p: float
    p_corrected: float
    tests: int
    level: float
    low: float
    high: float
    interval: str
    detectable: float | None
    blocking: Sequence[str]
    minor: Sequence[str]

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at 0.05 after correction."""
        return self.p_corrected < ALPHA

    @property
    def confidence(self) -> float:
        """Of the interval, in percent."""
        return round(100 * (1 - self.level), 2)

    @property
    def digits(self) -> int:
        """Decimals of all differences in points."""
        return decimals(100 * self.counts.difference, 100 * self.low, 100 * self.high)

    @property
    def cautions(self) -> list[str]:
        """A sentence if images, seed, protocol or versions differ."""
        return remarks_on(self.blocking, ())

    @property
    def remarks(self) -> list[str]:
        """The cautions, and a sentence on other differences."""
        return remarks_on(self.blocking, self.minor)

    def sentence(self) -> str:
        """Return the outcome in words; the better run comes first if the difference is significant."""
        counts, names = self.counts, self.names
        low, high, right = 100 * self.low, 100 * self.high, (counts.first, counts.second)
        if self.significant and counts.difference < 0:
            names, low, high, right = names[::-1], -high, -low, right[::-1]
        kind = "interval" if self.interval == "bootstrap" else f"{self.interval} interval"
        tests = f", p = {p_text(self.p_corrected)} with correction for {self.tests} tests" if self.tests > 1 else ""
        points, digits = 100 * counts.difference, self.digits
        size = f"{abs(points):.{digits}f} +- {50 * (self.high - self.low):.{digits}f} points"
        text = opening(names, points, size, self.significant)
        interval = f"{self.confidence:g} % {kind} {low:.{digits}f} to {high:.{digits}f}"
        text += f" ({interval}, n = {counts.n:,}; McNemar p = {p_text(self.p)}{tests})"
        if not counts.discordant:
            return f"{text}; there is no discordant image."
        discordant = f"{counts.discordant:,} discordant image{'s' if counts.discordant > 1 else ''}"
        text += f"; of {discordant} {names[0]} gets {right[0]:,} right, {names[1]} {right[1]:,}."
        if self.detectable is not None:
            return f"{text} n = {counts.n:,} detects {100 * self.detectable:.{digits}f} points with 80 % power."
        if self.significant:
            return text
        return f"{text} n = {counts.n:,} is too few to detect any difference with 80 % power."

    def row(self) -> dict[str, Any]:
        """Return plain values for a file; differences are in points."""
        return {name: value(self) for name, value in COLUMNS.items()}


# Columns of a comparison in files.
COLUMNS: Mapping[str, Callable[[Comparison], Any]] = {
    "run": lambda of: str(of.run.path),
    "base": lambda of: str(of.base.path),
    "compressor": lambda of: of.names[0],
    "base_compressor": lambda of: of.names[1],
    "n": lambda of: of.counts.n,
    "difference": lambda of: 100 * of.counts.difference,
    "low": lambda of: 100 * of.low,
    "high": lambda of: 100 * of.high,
    "interval": lambda of: of.interval,
    "confidence": lambda of: of.confidence,
    "discordant": lambda of: of.counts.discordant,
    "only_run_right": lambda of: of.counts.first,
    "only_base_right": lambda of: of.counts.second,
    "p": lambda of: of.p,
    "p_corrected": lambda of: of.p_corrected,
    "tests": lambda of: of.tests,
    "significant": lambda of: of.significant,
    "smallest_detectable": lambda of: None if of.detectable is None else 100 * of.detectable,
    "differs": lambda of: list(of.blocking),
    "also_differs": lambda of: list(of.minor),
}


def compare(base: Run, runs: Sequence[Run], allowed: bool = False) -> tuple[list[Comparison], list[InputError]]:
    """Compare runs with a base run.

    Args:
        base: The run that the others are compared with.
        runs: The others.
        allowed: Compare although images, seed, protocol or versions differ, on the images that both have.

    Returns:
        Comparisons in the order of `runs`, and for each run that is left out an error that names it.

    Raises:
        InputError: If the base run cannot be compared with anything.
    """
    base_outcomes = outcomes(base)
    counted: list[tuple[Run, Paired, Sequence[str], Sequence[str]]] = []
    refused: list[InputError] = []
    for run in runs:
        try:
            counted.append((run, *_count(run, base, base_outcomes, allowed)))
        except InputError as error:
            refused.append(error)
    return compared(base, counted), refused


def compared(base: Run, counted: Sequence[tuple[Run, Paired, Sequence[str], Sequence[str]]]) -> list[Comparison]:
    """Return the comparisons of runs with the base, from their discordant images and their other differences."""
    p_values = [mcnemar(counts) for _, counts, *_ in counted]
    tests = len(counted)
    return [
        Comparison(
            *(run, base, names_of(run, base), counts, p, corrected, tests, level, *difference_interval(counts, level)),
            *(smallest_detectable(counts, tests), blocking, minor),
        )
        for (run, counts, blocking, minor), p, corrected, level in zip(
            counted, p_values, holm(p_values), holm_levels(p_values), strict=True
        )
    ]


def _count(run: Run, base: Run, base_outcomes: Outcomes, allowed: bool) -> tuple[Paired, list[str], list[str]]:
    run_outcomes = outcomes(run)
    blocking, minor = checked(run, base, run_outcomes.image_id, base_outcomes.image_id, allowed)
    return pair(run_outcomes, base_outcomes, (str(run.path), str(base.path))), blocking, minor


def checked(run: Run, base: Run, ids: Ids, base_ids: Ids, allowed: bool) -> tuple[list[str], list[str]]:
    """Return how two runs differ besides their compressors: see `differences`.

    Raises:
        InputError: If they are one run, or differ in what must agree and this is not allowed.
    """
    if run.path.resolve() == base.path.resolve():
        raise InputError(f"{run.path} is the base itself")
    blocking, minor = differences(run, base, ids, base_ids)
    if blocking and not allowed:
        raise UnlikeError(
            f"{run.path} and {base.path} differ in more than the compressor: {'; '.join(blocking)}; compare "
            "runs that agree in these, or give --allow-differences to pair the images that both have"
        )
    return blocking, minor


def names_of(run: Run, base: Run) -> tuple[str, str]:
    """Return the compressors, with models and directories where they distinguish the runs."""
    mine, theirs = label(run.compressors), label(base.compressors)
    if run.model != base.model:
        mine, theirs = f"{mine} on {run.model}", f"{theirs} on {base.model}"
    if mine != theirs:
        return mine, theirs
    return f"{run.path} ({mine})", f"{base.path} ({theirs})"


def opening(names: tuple[str, str], difference: float, size: str, significant: bool) -> str:
    """Return the first words of a comparison; the names are in the order of the sentence."""
    if significant:
        return f"{names[0]} beats {names[1]} by {size}"
    if not difference:
        return f"{names[0]} and {names[1]} are level"
    side = "above" if difference > 0 else "below"
    return f"{names[0]} is {size} {side} {names[1]}, which is no significant difference"


def remarks_on(blocking: Sequence[str], minor: Sequence[str]) -> list[str]:
    """Return sentences on differences besides the compressors."""
    blocked = [f"Caution: they also differ in {'; '.join(blocking)}."] if blocking else []
    return blocked + ([f"They also differ in {'; '.join(minor)}."] if minor else [])


def p_text(p: float) -> str:
    """Format a p-value with two digits, or one below 0.0001."""
    return f"{p:.2g}" if p >= 1e-4 or not p else f"{p:.0e}"
