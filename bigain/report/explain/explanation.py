"""One run against its baseline: what the margins say, which frequencies were destroyed, and whether it mattered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigain.report.comparison import Comparison
from bigain.report.explain.frequency import Response, load_response, mean_share
from bigain.report.explain.margins import TIME, Margins, change_interval, margins
from bigain.report.explain.stored_errors import Errors, read_errors, share


@dataclass(frozen=True)
class Band:
    """Margins of both runs on the same trials of the same images.

    Attributes:
        low: First timestep.
        high: The first one that is above the band.
        base: Of the baseline.
        run: Of the run.
        interval: 95 % paired-bootstrap interval of the change of 1 / r; None where it has no value.
    """

    low: float
    high: float
    base: Margins
    run: Margins
    interval: tuple[float, float] | None

    @property
    def change(self) -> float | None:
        """Change of 1 / r, `mu / sigma`; None where it has no value."""
        before, after = self.base.separation, self.run.separation
        return None if before is None or after is None else after - before

    @property
    def criterion(self) -> str | None:
        """What Theorem 1 says of the bound: `helps` if r falls, `hurts` if it rises or the margin is lost.

        None if neither margin is positive: the bound is 1 in both.
        """
        if self.change is None or (self.base.mu <= 0 and self.run.mu <= 0):
            return None
        return "helps" if self.change > 0 else "hurts" if self.change < 0 else "level"

    @property
    def certain(self) -> bool:
        """Whether the interval of the change leaves 0 out."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def name(self) -> str:
        """`200-399`: the whole timesteps in it."""
        return f"{math.ceil(self.low)}-{math.ceil(self.high) - 1}"

    def row(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "timesteps": [self.low, self.high],
            "images": len(self.run.mean),
            "trials_per_image": self.run.n,
            "base": _values(self.base),
            "run": _values(self.run),
            "change_of_mu_over_sigma": self.change,
            "change_of_mu_over_sigma_interval": None if self.interval is None else list(self.interval),
            "theorem": self.criterion,
        }


@dataclass(frozen=True)
class Explanation:
    """Why a run differs from its baseline.

    Attributes:
        comparison: Accuracy, image by image.
        classes: Classes that a margin chooses its rival from.
        whole: Margins over all shared trials.
        bands: The same by timestep; bands without any shared trial are not among them.
        response: What the run stored of spatial frequencies.
    """

    comparison: Comparison
    classes: int
    whole: Band
    bands: Sequence[Band]
    response: Response | None

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.comparison.names[0]

    def row(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            **self.comparison.row(),
            "classes": self.classes,
            "margins": self.whole.row(),
            "margins_by_timestep": [band.row() for band in self.bands],
            "frequencies": None if self.response is None else _frequencies(self.response),
        }


def explain(comparison: Comparison, base: Errors, bands: int) -> Explanation:
    """Compare margins of a run and its baseline.

    Args:
        comparison: The two.
        base: Errors of the baseline.
        bands: Bands of timesteps of equal width.

    Raises:
        InputError: If the run has no errors to explain, or none that the baseline has, too.
    """
    run, start = comparison.run, comparison.base
    both = share(base, read_errors(run), (str(start.path), str(run.path)))
    response = load_response(run.path)

    def band(low: float, high: float) -> Band | None:
        trials = both.band(low, high)
        a, b = margins(both.first, both.label, trials), margins(both.second, both.label, trials)
        return None if a is None or b is None else Band(low, high, a, b, change_interval(a, b))

    whole = band(0, TIME)
    assert whole is not None
    edges = [TIME * k / bands for k in range(bands + 1)]
    found = [band(*ends) for ends in itertools.pairwise(edges)]
    return Explanation(comparison, both.first.shape[1], whole, [one for one in found if one is not None], response)


def _values(of: Margins) -> dict[str, Any]:
    return {
        "mu": of.mu,
        "sigma": of.sigma,
        "r": of.r,
        "mu_over_sigma": of.separation,
        "theorem_bound": of.theorem,
        "sigma_of_means": of.sigma_of_means,
        "cantelli_bound": of.bound,
        "error": of.error,
    }


def _frequencies(response: Response) -> dict[str, Any]:
    sites = response.by_band
    return {
        "bands": list(response.bands),
        "timesteps": list(response.timesteps),
        "batches": response.batches,
        "images": response.images,
        "sites": [{"name": site.name, "kept": site.kept, "destroyed": site.destroyed} for site in sites],
        "kept": mean_share([site.kept for site in sites]),
        "destroyed": mean_share([site.destroyed for site in sites]),
        "highest_destroyed_by_timestep": mean_share([site.destroyed for site in response.by_time(response.highest)]),
        "not_measured": list(response.not_measured),
    }
