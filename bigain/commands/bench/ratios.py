"""What a list of times says: medians, paired ratios, and how much of a promised saving is real."""

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
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def times(self, factor: float) -> Spread:
        """In another unit; the factor is positive."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """Ratios of times that were measured in the same rounds.

    Args:
        seconds: One per round.
        reference: One per round, positive.
    """
    return Spread.of([one / other for one, other in zip(seconds, reference, strict=True)])


def realised_percent(ratio: Spread, promised: float) -> Spread | None:
    """How much of the promised saving is real: `100 * (1 - ratio) / (1 - promised)`, negative where it is slower.

    Args:
        ratio: Measured, of the time without compression.
        promised: By the FLOPs, of those without compression.

    Returns:
        None where nothing is promised.
    """
    if promised >= 1:
        return None
    # The lowest ratio saves most.
    median, high, low = (100 * (1 - r) / (1 - promised) for r in (ratio.median, ratio.low, ratio.high))
    return Spread(median, low, high)
