"""Paired statistics of two classifiers on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Correct = npt.NDArray[np.bool_]

ALPHA = 0.05
POWER = 0.8
DRAWS = 10_000
# With fewer images, or discordant ones, a bootstrap interval is too narrow.
ENOUGH = 10


@dataclass(frozen=True)
class Paired:
    """Numbers of images: all, those that only the first classifier gets right, and those that only the second does."""

    n: int
    first: int
    second: int

    @classmethod
    def of(cls, first: Correct, second: Correct) -> Paired:
        """Count the discordant images of two columns `(n,)`, in the same order."""
        return cls(len(first), int((first & ~second).sum()), int((second & ~first).sum()))

    @property
    def discordant(self) -> int:
        """Images that exactly one of the two gets right."""
        return self.first + self.second

    @property
    def difference(self) -> float:
        """Accuracy of the first minus accuracy of the second, in [-1, 1]."""
        return (self.first - self.second) / self.n


def mcnemar(pair: Paired) -> float:
    """Return the p-value of the exact two-sided McNemar test; 1 without discordant images.

    The null hypothesis: a discordant image is right in either classifier with probability 1/2.
    """
    # scipy.stats takes longer to import than a thousand of these tests take to run.
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(pair.first, pair.second), pair.discordant, 0.5)))


def bootstrap_interval(pair: Paired, level: float = ALPHA) -> tuple[float, float]:
    """Return the percentile interval of the accuracy difference over resampled images.

    Drawing n images with replacement and counting the discordant ones is one multinomial draw, so the time does not
    depend on n. The interval is a function of the counts and the level, which is one minus the confidence.
    """
    chances = np.array([pair.first, pair.second, pair.n - pair.discordant]) / pair.n
    counts = np.random.default_rng(0).multinomial(pair.n, chances, size=DRAWS)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / pair.n, [level / 2, 1 - level / 2])
    # A quantile between two draws is interpolated: its rounding must not give a zero a sign.
    return round(float(low), 12), round(float(high), 12)


def score_interval(pair: Paired, level: float = ALPHA) -> tuple[float, float]:
    """Return the score interval of the accuracy difference: what a score test does not reject (Tango, 1998).

    Unlike a bootstrap interval it has a width if few or no images are discordant.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    n, z = pair.n, float(ndtri(1 - level / 2))

    def excess(difference: float, signed_z: float) -> float:
        # The most likely share, at this difference, of images that only the second gets right.
        b = -pair.discordant + (2 * n - pair.first + pair.second) * difference
        c = -pair.second * difference * (1 - difference)
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * max(0.0, 2 * share + difference * (1 - difference))
        return pair.first - pair.second - n * difference - signed_z * math.sqrt(variance)

    # With variance 0 the measured difference is a root, but no end of the interval. At -1 and 1 the sign differs from
    # that near it, unless all images are discordant in one direction.
    margin = 1e-9
    low = brentq(excess, -1, pair.difference - margin, args=(z,)) if pair.second < n else -1.0
    high = brentq(excess, pair.difference + margin, 1, args=(-z,)) if pair.first < n else 1.0
    return round(float(low), 12), round(float(high), 12)


def exact_interval(pair: Paired, level: float = ALPHA) -> tuple[float, float]:
    """Return the accuracy differences that the exact McNemar test does not reject, given the discordant images.

    It contains 0 exactly if `mcnemar(pair)` is not below the level: the interval of Clopper and Pearson (1934) for the
    share of discordant images that the first gets right.
    """
    from scipy.special import betaincinv

    low = float(betaincinv(pair.first, pair.second + 1, level / 2)) if pair.first else 0.0
    high = float(betaincinv(pair.first + 1, pair.second, 1 - level / 2)) if pair.second else 1.0
    share = pair.discordant / pair.n
    return round(share * (2 * low - 1), 12), round(share * (2 * high - 1), 12)


def difference_interval(pair: Paired, level: float = ALPHA) -> tuple[float, float, str]:
    """Return an interval of the accuracy difference that contains 0 exactly if `mcnemar(pair)` is not below the level.

    Its kind is returned after its ends: `bootstrap`, or `score` with few discordant images; `exact` where that one and
    the exact test contradict each other: then the end next to 0 is that of `exact_interval`, whose other end may be the
    measured difference.
    """
    kind = "bootstrap" if pair.discordant >= ENOUGH else "score"
    low, high = bootstrap_interval(pair, level) if kind == "bootstrap" else score_interval(pair, level)
    if (low <= 0 <= high) == (mcnemar(pair) < level):
        exact = exact_interval(pair, level)
        return (exact[0], high, "exact") if pair.difference > 0 else (low, exact[1], "exact")
    return low, high, kind


def smallest_detectable(pair: Paired, tests: int = 1) -> float | None:
    """Return the accuracy difference that a McNemar test detects with 80 % power, given these discordant images.

    Solves `n d^2 = (z_a sqrt(q) + z_b sqrt(q - d^2))^2` for d (Miettinen, 1968; Connor, 1987), where q is the share of
    discordant images. Two-sided at 0.05, divided by the number of tests.

    Returns:
        A difference in (0, 1], or None if it would exceed the share of discordant images.
    """
    from scipy.special import ndtri

    n, share = pair.n, pair.discordant / pair.n
    level, power = float(ndtri(1 - ALPHA / tests / 2)), float(ndtri(POWER))
    discriminant = n - level**2 + power**2
    if not share or discriminant < 0:
        return None
    difference = math.sqrt(share) * (math.sqrt(n) * level + power * math.sqrt(discriminant)) / (n + power**2)
    return difference if difference <= share else None


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, 1979); the order is kept."""
    p = np.asarray(values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected.tolist()


def holm_levels(values: Sequence[float]) -> list[float]:
    """Return the level at which Holm's method tests each p-value: its difference is significant if p is below it.

    The smallest of m is tested at 0.05 / m, the next at 0.05 / (m - 1), and so on; those after the first that is not
    significant have its level.
    """
    ranks, significant = np.argsort(np.argsort(values, kind="stable")), sum(p < ALPHA for p in holm(values))
    return (ALPHA / (len(values) - np.minimum(ranks, significant))).tolist()
