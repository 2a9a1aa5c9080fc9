"""Medians, paired ratios, and the realised part of a promised saving."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def times(self, factor: float) -> Spread:
        """Return it in a different unit; the factor is positive."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the ratios of times that were measured in the same rounds.

    Args:
        seconds: One per round.
        reference: One per round, positive.
    """
    return Spread.of([a / b for a, b in zip(seconds, reference, strict=True)])


def realised_percent(ratio: Spread, promised: float) -> Spread | None:
    """Return the realised percentage of a saving, `100 * (1 - ratio) / (1 - promised)`; negative if slower.

    Args:
        ratio: Measured time, relative to no compression.
        promised: FLOPs, relative to no compression.

    Returns:
        None if nothing is promised.
    """
    if promised >= 1:
        return None
    # The lowest ratio saves most.
    median, high, low = (100 * (1 - r) / (1 - promised) for r in (ratio.median, ratio.low, ratio.high))
    return Spread(median, low, high)
