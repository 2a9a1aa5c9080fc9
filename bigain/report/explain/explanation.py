"""One run against its baseline: margins by timestep, the frequencies it destroyed, and the change of accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bigain.report.comparison import Comparison
from bigain.report.explain.frequency import Response, load_response
from bigain.report.explain.margins import TIME, Errors, Margins, change_interval, margins, read_errors, share


@dataclass(frozen=True)
class Band:
    """Margins of both runs on the same trials of the same images.

    Attributes:
        low: First timestep.
        high: First timestep above the band.
        base: Margins of the baseline.
        run: Margins of the run.
        interval: 95 % paired-bootstrap interval of the change of 1 / r; None if it does not exist.
    """

    low: float
    high: float
    base: Margins
    run: Margins
    interval: tuple[float, float] | None

    @property
    def change(self) -> float | None:
        """Change of 1 / r, `mu / sigma`; None if it does not exist."""
        before, after = self.base.mu_over_sigma, self.run.mu_over_sigma
        return None if before is None or after is None else after - before

    @property
    def criterion(self) -> str | None:
        """Theorem 1's verdict on the bound: `helps` if r falls, `hurts` if it rises or the margin is lost, or `level`.

        None if neither margin is positive: the bound is 1 in both.
        """
        if self.change is None or (self.base.mu <= 0 and self.run.mu <= 0):
            return None
        return "helps" if self.change > 0 else "hurts" if self.change < 0 else "level"

    @property
    def certain(self) -> bool:
        """Whether the interval of the change excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def name(self) -> str:
        """`200-399`: the whole timesteps in the band."""
        return f"{math.ceil(self.low)}-{math.ceil(self.high) - 1}"

    def row(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {
            "timesteps": [self.low, self.high],
            "images": len(self.run.mean),
            "trials_per_image": self.run.n,
            "base": self.base.row(),
            "run": self.run.row(),
            "change_of_mu_over_sigma": self.change,
            "change_of_mu_over_sigma_interval": self.interval,
            "theorem": self.criterion,
        }


@dataclass(frozen=True)
class Explanation:
    """Why a run differs from its baseline.

    Attributes:
        comparison: Accuracy, image by image.
        classes: Number of classes.
        whole: Margins over all shared trials.
        bands: Margins by timestep, without bands that have no shared trial.
        response: The frequency response that the run stored.
    """

    comparison: Comparison
    classes: int
    whole: Band
    bands: Sequence[Band]
    response: Response | None

    def row(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {
            **self.comparison.row(),
            "classes": self.classes,
            "margins": self.whole.row(),
            "margins_by_timestep": [band.row() for band in self.bands],
            "frequencies": self.response and self.response.row(),
        }


def explain(comparison: Comparison, base: Errors, bands: int) -> Explanation:
    """Compare margins of a run and its baseline.

    Args:
        comparison: The run and the baseline.
        base: Stored errors of the baseline.
        bands: Number of bands of timesteps, of equal width.

    Raises:
        InputError: If the run stored no errors, or none that the baseline has, too.
    """
    run, baseline = comparison.run, comparison.base
    both = share(base, read_errors(run), (str(baseline.path), str(run.path)))

    def band(low: float, high: float) -> Iterator[Band]:
        trials = both.band(low, high)
        before, after = (margins(errors, both.label, trials) for errors in (both.first, both.second))
        if before is not None and after is not None:
            yield Band(low, high, before, after, change_interval(before, after))

    (whole,) = band(0, TIME)
    edges = [TIME * k / bands for k in range(bands + 1)]
    parts = [part for ends in itertools.pairwise(edges) for part in band(*ends)]
    return Explanation(comparison, both.first.shape[1], whole, parts, load_response(run.path))
