"""Paired statistics of two classifiers that saw the same images."""

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
# Discordant images from which on resampling them says something.
ENOUGH = 10


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same images.

    Attributes:
        n: Images.
        first: Images that only the first gets right.
        second: Images that only the second gets right.
    """

    n: int
    first: int
    second: int

    @classmethod
    def of(cls, first: Correct, second: Correct) -> Paired:
        """Count the discordant images. Both `(n,)`, in the same order.

        Raises:
            ValueError: If the lengths differ or there is no image.
        """
        if first.shape != second.shape or first.ndim != 1 or not len(first):
            raise ValueError(f"expected two columns of one length above 0, not {first.shape} and {second.shape}")
        return cls(len(first), int((first & ~second).sum()), int((second & ~first).sum()))

    @property
    def discordant(self) -> int:
        """Images that one of the two gets right."""
        return self.first + self.second

    @property
    def difference(self) -> float:
        """Accuracy of the first minus accuracy of the second, in [-1, 1]."""
        return (self.first - self.second) / self.n


def mcnemar(pair: Paired) -> float:
    """Exact two-sided McNemar test: whether discordant images fall to either side like a fair coin.

    Returns:
        The p-value; 1 without discordant images.
    """
    # Not scipy.stats, whose import alone takes longer than a thousand of these tests.
    from scipy.special import bdtr

    # Under the null hypothesis both tails are alike.
    return min(1.0, 2 * float(bdtr(min(pair.first, pair.second), pair.discordant, 0.5)))


def bootstrap_interval(pair: Paired, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the accuracy difference over resampled images.

    Drawing n images with replacement and counting the discordant ones is one multinomial draw, so nothing is drawn
    image by image: 10,000 resamples of any n cost the same.

    Args:
        pair: The counts.
        seed: The interval is a function of the counts and of this.
    """
    chances = np.array([pair.first, pair.second, pair.n - pair.discordant]) / pair.n
    counts = np.random.default_rng(seed).multinomial(pair.n, chances, size=DRAWS)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / pair.n, [ALPHA / 2, 1 - ALPHA / 2])
    # A quantile between two draws is interpolated: its rounding must not turn a zero into a sign.
    return round(float(low), 12), round(float(high), 12)


def score_interval(pair: Paired) -> tuple[float, float]:
    """95 % score interval of the accuracy difference (Tango, 1998): the differences that a score test does not reject.

    Unlike resampling it has a width where no image, or hardly any, is discordant.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    n, level = pair.n, float(ndtri(1 - ALPHA / 2))

    def excess(difference: float, of: float) -> float:
        # The share of images that only the second gets right, most likely at this difference.
        b = -pair.discordant + (2 * n - pair.first + pair.second) * difference
        c = -pair.second * difference * (1 - difference)
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * max(0.0, 2 * share + difference * (1 - difference))
        return pair.first - pair.second - n * difference - of * math.sqrt(variance)

    # Without any variance the root at the difference itself is none. At -1 and 1 both are on the far side, unless all
    # images are discordant in one direction.
    near = 1e-9
    low = brentq(excess, -1, pair.difference - near, args=(level,)) if pair.second < n else -1.0
    high = brentq(excess, pair.difference + near, 1, args=(-level,)) if pair.first < n else 1.0
    return round(float(low), 12), round(float(high), 12)


def difference_interval(pair: Paired) -> tuple[float, float]:
    """95 % interval of the accuracy difference: paired bootstrap, but of few discordant images the score interval."""
    return bootstrap_interval(pair) if pair.discordant >= ENOUGH else score_interval(pair)


def smallest_detectable(pair: Paired, tests: int = 1) -> float | None:
    """The accuracy difference that a McNemar test on so many images, so often discordant, finds in 80 % of cases.

    Solves `n d^2 = (z_a sqrt(q) + z_b sqrt(q - d^2))^2` for d (Miettinen, 1968; Connor, 1987), where q is the share of
    discordant images. Two-sided at 0.05, divided by the number of tests.

    Returns:
        A difference in (0, 1], or None if no difference could be found: it would exceed the share of discordant images.
    """
    from scipy.special import ndtri

    n, share = pair.n, pair.discordant / pair.n
    level, power = float(ndtri(1 - ALPHA / tests / 2)), float(ndtri(POWER))
    inside = n - level**2 + power**2
    if not share or inside < 0:
        return None
    found = math.sqrt(share) * (math.sqrt(n) * level + power * math.sqrt(inside)) / (n + power**2)
    return found if found <= share else None


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979), in the given order."""
    p = np.asarray(values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    corrected = np.empty_like(stepped)
    corrected[order] = stepped
    found: list[float] = corrected.tolist()
    return found
