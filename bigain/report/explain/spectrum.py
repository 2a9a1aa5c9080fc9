"""Margins by frequency of the residual: what Theorem 1 of BiGain assumes of them, and what it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.report.explain.margins import Errors, Floats, around_timesteps, resampled, rivals
from bigain.report.statistics import ALPHA, ENOUGH
from bigain.report.tables import indented
from bigain.runs.numbers import counted, with_interval

# Statements of the paper: a number of `Moments`, its edge, whether it should lie above, scale and unit, words. What
# is weak is less than a medium correlation (Cohen, Statistical Power Analysis, 1988).
_STATEMENTS = (
    ("low_margin", 0.5, True, 100, "%", "low bands dominate the margin", "the lower half has"),
    ("high_variance", 0.5, True, 100, "%", "high bands dominate the variance", "the upper half has"),
    ("mean_correlation", 0.3, False, 1, "", "cross-band correlation is weak", "it is on average"),
)
_VERDICTS = {True: "holds", False: "does not hold", None: "is undecided"}


@dataclass(frozen=True)
class Moments:
    """Means and covariances of the margins of b bands, `(..., b)` and `(..., b, b)`, and what follows from them."""

    mu: Floats
    covariance: Floats

    @property
    def variances(self) -> Floats:
        """Of single bands. `(..., b)`."""
        return np.diagonal(self.covariance, axis1=-2, axis2=-1)

    @property
    def correlation(self) -> Floats:
        """`(..., b, b)`."""
        return _ratio(self.covariance, np.sqrt(self.variances[..., None] * self.variances[..., None, :]))

    @property
    def independent(self) -> Floats:
        """`mu / sigma` of the margin if bands are independent, as Theorem 1 has it."""
        return _ratio(self.mu.sum(-1), np.sqrt(self.variances.sum(-1)))

    @property
    def separation(self) -> Floats:
        """`mu / sigma` of the margin, 1 / r."""
        return _ratio(self.mu.sum(-1), np.sqrt(self.covariance.sum((-2, -1))))

    @property
    def low_margin(self) -> Floats:
        """Share of the mean and the lower half of the bands in the margin."""
        return _ratio(self.mu[..., : (self.mu.shape[-1] + 1) // 2].sum(-1), self.mu.sum(-1))

    @property
    def high_variance(self) -> Floats:
        """Share of the upper half of the bands in the sum of their variances."""
        return _ratio(self.variances[..., (self.mu.shape[-1] + 1) // 2 :].sum(-1), self.variances.sum(-1))

    @property
    def mean_correlation(self) -> Floats:
        """Mean absolute correlation of two bands."""
        return np.abs(self.correlation[..., *np.triu_indices(self.mu.shape[-1], 1)]).mean(-1)

    @property
    def shared_variance(self) -> Floats:
        """Share of covariances in the variance of the margin."""
        return 1 - _ratio(self.variances.sum(-1), self.covariance.sum((-2, -1)))


@dataclass(frozen=True)
class Spectrum:
    """Margins by frequency of m images: means over the trials of each.

    Attributes:
        mean: `(m, b)`.
        product: Of two bands; with several noises per timestep, of their deviations from its mean. `(m, b, b)`.
        over_noise: Whether variances are the theorem's, over noises at one timestep, not over images and trials.
    """

    mean: Floats
    product: Floats
    over_noise: bool

    def _moments(self, mean: Floats, product: Floats) -> Moments:
        return Moments(mean, product if self.over_noise else product - mean[..., None] * mean[..., None, :])

    @cached_property
    def moments(self) -> Moments:
        """Of all images."""
        return self._moments(self.mean.mean(0), self.product.mean(0))

    @cached_property
    def draws(self) -> Moments:
        """Of each bootstrap draw of images, the same draws for runs of as many images."""
        images, bands = self.mean.shape
        means = resampled(np.concatenate([self.mean, self.product.reshape(images, -1)], 1)) / images
        return self._moments(means[:, :bands], means[:, bands:].reshape(-1, bands, bands))

    def interval(self, name: str, base: Spectrum | None = None) -> tuple[float, float] | None:
        """Return the 95 % interval of a number of the moments, or of its change; None if there is none."""
        values = getattr(self.draws, name) - (getattr(base.draws, name) if base else 0)
        if len(self.mean) < ENOUGH or not np.isfinite(values).all():
            return None
        low, high = np.quantile(values, [ALPHA / 2, 1 - ALPHA / 2])
        return float(low), float(high)

    def verdicts(self) -> dict[str, bool | None]:
        """Return whether each statement of the paper holds; None if too few images tell."""
        above = {name: _above(self.interval(name), edge) for name, edge, *_ in _STATEMENTS}
        return {name: above[name] if above[name] is None else above[name] == more for name, _, more, *_ in _STATEMENTS}

    def statements(self, name: str) -> str:
        """Return whether the statements of the paper hold of the run of this name, with the numbers."""
        verdicts, parts = self.verdicts(), []
        for share, _, _, scale, unit, statement, subject in _STATEMENTS:
            ends = self.interval(share)
            low, high = (None, None) if ends is None else (scale * ends[0], scale * ends[1])
            number = with_interval(scale * float(getattr(self.moments, share)), low, high, unit, "95 % interval ")
            parts.append(f'"{statement}" {_VERDICTS[verdicts[share]]}, {subject} {number}')
        shared = 100 * float(self.moments.shared_variance)
        return f"{name}: {'; '.join(parts)}, and covariances are {shared:.2g} % of the variance of the margin."


def spectrum(errors: Errors, trials: npt.NDArray[np.bool_]) -> Spectrum | None:
    """Return margins by frequency over the trials that count `(n, t)`; None if the run stored no such errors."""
    if errors.bands is None:
        return None
    kept = trials.any(1)
    trials, label, bands = trials[kept], errors.label[kept], errors.bands[kept]
    image, rival, count = np.arange(len(label)), rivals(errors.errors[kept], label, trials), trials.sum(1)
    margin = np.where(trials[..., None], bands[image, rival].astype(np.float64) - bands[image, label], 0)
    around = around_timesteps(margin, errors.timesteps[kept], trials)
    spread = margin if around is None else around
    product = np.einsum("ntb,ntc->nbc", spread, spread) / count[:, None, None]
    return Spectrum(margin.sum(1) / count[:, None], product, around is not None)


@dataclass(frozen=True)
class Spectra:
    """Margins by frequency of the baseline and the run, and `|H_P|^2` of each band, None if it was not measured."""

    base: Spectrum
    run: Spectrum
    gain: Floats | None

    @property
    def predicted(self) -> Moments | None:
        """By Theorem 1: margins are energies, scaled by the gain."""
        of, gain = self.base.moments, self.gain
        return None if gain is None else Moments(gain * of.mu, gain[:, None] * gain * of.covariance)

    def row(self) -> dict[str, Any]:
        """Return plain values for a file."""
        sides = {"base": self.base.moments, "run": self.run.moments, "predicted": self.predicted}
        return {
            **{side: of and {"mu": of.mu.tolist(), "covariance": of.covariance.tolist()} for side, of in sides.items()},
            "gain": None if self.gain is None else self.gain.tolist(),
            "over_noise": self.base.over_noise,
            "statements": [of.verdicts() for of in (self.base, self.run)],
        }

    def lines(self, names: Sequence[str], accuracy: str) -> list[str]:
        """Return tables and sentences; `names` of the run and the baseline, `accuracy` is its change."""
        base, run, predicted = self.base.moments, self.run.moments, self.predicted
        count, extra = len(base.mu) - 1, [] if predicted is None else ["predicted"]
        sides = [base, run, *([] if predicted is None else [predicted])]
        columns = [*(of.mu for of in sides), *(np.sqrt(of.variances) for of in sides)]
        headers = ["frequency", "margin", "->", *extra, "deviation", "->", *extra]
        if self.gain is not None:
            headers, columns = [*headers, "|H_P|^2"], [*columns, self.gain]
        bands = ["mean", *(f"{k / count:.2g}-{(k + 1) / count:.2g}" for k in range(count))]
        both = np.tril(base.correlation, -1) + np.triu(run.correlation)
        over = "noises at one timestep of one image" if self.base.over_noise else "images and trials"
        return [
            f"Margins by frequency of the residual, 1 is the highest, and deviations over {over} "
            f"(n = {counted(len(self.base.mean), 'image')}):",
            _numbers(headers, bands, np.transpose(columns), ".3g"),
            "Correlation between bands, of the baseline below the diagonal, of the run above it:",
            _numbers(["", *bands], bands, both, ".2f"),
            *([] if predicted is None else [self._prediction(predicted, accuracy)]),
            self.base.statements(names[1]),
            self.run.statements(names[0]),
        ]

    def _prediction(self, predicted: Moments, accuracy: str) -> str:
        base, run = self.base.moments, self.run.moments
        rises = bool(predicted.independent > base.independent)
        rose = _above(self.run.interval("separation", self.base), 0)
        outcome = "too few images to tell" if rose is None else "which is right" if rose == rises else "which is wrong"
        mu, sigma2 = base.mu.sum(), base.variances.sum()
        return (
            f"By |H_P|^2 and with independent bands, Theorem 1 predicts the margin to go from {mu:.3g} to "
            f"{predicted.mu.sum():.3g}, sigma^2 from {sigma2:.3g} to {predicted.variances.sum():.3g}, and 1/r to "
            f"{'rise' if rises else 'fall'} from {base.independent:.3g} to {predicted.independent:.3g}: {outcome}. "
            f"Measured: margin {mu:.3g} to {run.mu.sum():.3g}, sigma^2 {base.covariance.sum():.3g} to "
            f"{run.covariance.sum():.3g}, 1/r {base.separation:.3g} to {run.separation:.3g}; accuracy changed by "
            f"{accuracy} points."
        )


def _numbers(headers: Sequence[str], names: Sequence[str], rows: Floats, style: str) -> str:
    return indented(
        headers, [[name, *(f"{value:{style}}" for value in row)] for name, row in zip(names, rows, strict=True)]
    )


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Return a quotient, NaN where the whole is not positive."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _above(interval: tuple[float, float] | None, edge: float) -> bool | None:
    """Return whether an interval lies above an edge; None if it contains it, or there is none."""
    return None if interval is None or interval[0] <= edge <= interval[1] else interval[0] > edge
