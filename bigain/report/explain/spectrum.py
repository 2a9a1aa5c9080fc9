"""Margins by frequency of the residual: what Theorem 1 of BiGain assumes of them, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.report.explain.margins import Errors, Floats, resampled, trial_margins
from bigain.report.statistics import ALPHA, ENOUGH
from bigain.report.tables import indented
from bigain.runs.numbers import counted, with_interval

# Statements of the paper: a name in `numbers`, an edge, whether it should lie above, scale and unit, words. Weak is
# less than a medium correlation (Cohen, Statistical Power Analysis, 1988).
_STATEMENTS = (
    ("low_margin", 0.5, True, 100, "%", "low bands dominate the margin", "the lower half has"),
    ("high_variance", 0.5, True, 100, "%", "high bands dominate the variance", "the upper half has"),
    ("mean_correlation", 0.3, False, 1, "", "cross-band correlation is weak", "it is on average"),
)
_VERDICTS = {True: "holds", False: "does not hold", None: "is undecided"}


@dataclass(frozen=True)
class Spectrum:
    """Margins by frequency: mean `(b,)` and covariance `(b, b)` of b bands.

    Covariances are `over_noise`, at one timestep of one image, as the theorem's, or over images and trials. `draws` are
    the `numbers` of bootstrap draws of images, which are the same for runs of as many images.
    """

    mu: Floats
    covariance: Floats
    images: int
    over_noise: bool
    draws: Mapping[str, Floats]

    def interval(self, name: str, base: Spectrum | None = None) -> tuple[float, float] | None:
        """Return the 95 % interval of one of `numbers`, or of its change; None if there is none."""
        values = self.draws[name] - (base.draws[name] if base else 0)
        if self.images < ENOUGH or not np.isfinite(values).all():
            return None
        low, high = np.quantile(values, [ALPHA / 2, 1 - ALPHA / 2])
        return float(low), float(high)

    def statements(self) -> tuple[list[bool | None], str]:
        """Return whether each statement of the paper holds, None if too few images tell, and all of it in words."""
        holds, parts, values = [], [], numbers(self.mu, self.covariance)
        for name, edge, more, scale, unit, statement, subject in _STATEMENTS:
            ends = self.interval(name)
            above = _above(ends, edge)
            holds.append(None if above is None else above == more)
            low, high = (None, None) if ends is None else (scale * ends[0], scale * ends[1])
            number = with_interval(scale * float(values[name]), low, high, unit, "95 % interval ")
            parts.append(f'"{statement}" {_VERDICTS[holds[-1]]}, {subject} {number}')
        shared = 100 - 100 * np.trace(self.covariance) / self.covariance.sum()
        return holds, f"{'; '.join(parts)}, and covariances are {shared:.2g} % of the variance of the margin."


def numbers(mu: Floats, covariance: Floats) -> dict[str, Floats]:
    """Return these numbers from moments `(..., b)` and `(..., b, b)`, `(...)` each; not finite where undefined.

    The share of the mean and the lower half of the bands in the margin, that of the upper half in the bands' variances,
    the mean absolute correlation of two bands, and `mu / sigma` of the margin, also as if bands were independent.
    """
    variances, half = np.diagonal(covariance, axis1=-2, axis2=-1), (mu.shape[-1] + 1) // 2
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = correlation(covariance)[..., *np.triu_indices(mu.shape[-1], 1)]
        return {
            "low_margin": np.where(mu.sum(-1) > 0, mu[..., :half].sum(-1) / mu.sum(-1), np.nan),
            "high_variance": variances[..., half:].sum(-1) / variances.sum(-1),
            "mean_correlation": np.abs(pairs).mean(-1),
            "mu_over_sigma": mu.sum(-1) / np.sqrt(covariance.sum((-2, -1))),
            "independent": mu.sum(-1) / np.sqrt(variances.sum(-1)),
        }


def correlation(covariance: Floats) -> Floats:
    """Return the correlations of covariances `(..., b, b)`."""
    sigma = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return covariance / (sigma[..., None] * sigma[..., None, :])


def spectrum(of: Errors, trials: npt.NDArray[np.bool_]) -> Spectrum | None:
    """Return margins by frequency over the trials that count `(n, t)`; None if the run stored no such errors."""
    if not of.bands.shape[3]:
        return None
    margin, around, count = trial_margins(of, trials, of.bands)
    spread, b = margin if around is None else around, margin.shape[2]
    products = np.einsum("ntb,ntc->nbc", spread, spread).reshape(len(count), -1)
    columns = np.concatenate([margin.sum(1), products], 1) / count[:, None]

    def moments(means: Floats) -> tuple[Floats, Floats]:
        mu, product = means[..., :b], means[..., b:].reshape(*means.shape[:-1], b, b)
        return mu, product - (mu[..., None] * mu[..., None, :] if around is None else 0)

    draws = numbers(*moments(resampled(columns) / len(count)))
    return Spectrum(*moments(columns.mean(0)), len(count), around is not None, draws)


def spectra_row(base: Spectrum, run: Spectrum, gain: Floats | None) -> dict[str, Any]:
    """Return plain values for a file."""
    sides = {
        side: {"mu": of.mu.tolist(), "covariance": of.covariance.tolist(), "statements": of.statements()[0]}
        for side, of in (("base", base), ("run", run))
    }
    return {**sides, "over_noise": base.over_noise, "gain": None if gain is None else gain.tolist()}


def spectra_lines(base: Spectrum, run: Spectrum, gain: Floats | None, names: Sequence[str], accuracy: str) -> list[str]:
    """Return tables and sentences. `gain`: `|H_P|^2` by band; `names`: of run and baseline; `accuracy`: its change."""
    count, sides = len(base.mu) - 1, [(base.mu, base.covariance), (run.mu, run.covariance)]
    if gain is not None:
        # Margins are energies: the gain scales them and their deviations.
        sides.append((gain * base.mu, gain[:, None] * gain * base.covariance))
    heads = ["", "->", "predicted"][: len(sides)]
    columns = [*(mu for mu, _ in sides), *(np.sqrt(np.diagonal(covariance)) for _, covariance in sides)]
    bands = ["mean", *(f"{k / count:.2g}-{(k + 1) / count:.2g}" for k in range(count))]
    both = np.tril(correlation(base.covariance), -1) + np.triu(correlation(run.covariance))
    over = "noises at one timestep of one image" if base.over_noise else "images and trials"
    return [
        f"Margins by frequency of the residual, 1 is the highest, and deviations over {over} "
        f"(n = {counted(base.images, 'image')}):",
        _table(["frequency", *(head or of for of in ("margin", "deviation") for head in heads)], bands, columns, ".3g"),
        "Correlation between bands, of the baseline below the diagonal, of the run above it:",
        _table(["", *bands], bands, both.T, ".2f"),
        *([] if gain is None else [_prediction(gain, sides, run.interval("mu_over_sigma", base), accuracy)]),
        *(f"{name}: {of.statements()[1]}" for name, of in zip(names, (run, base), strict=True)),
    ]


def _table(headers: Sequence[str], names: Sequence[str], columns: Sequence[Floats] | Floats, style: str) -> str:
    cells = [[f"{value:{style}}" for value in row] for row in np.transpose(columns)]
    return indented(headers, [[name, *row] for name, row in zip(names, cells, strict=True)])


def _prediction(
    gain: Floats, sides: Sequence[tuple[Floats, Floats]], change: tuple[float, float] | None, accuracy: str
) -> str:
    """Return what Theorem 1 predicts of margin, variance and their ratio, and what was measured."""
    before, after, predicted = (numbers(*side) for side in sides)
    rises, rose = bool(predicted["independent"] > before["independent"]), _above(change, 0)
    outcome = "too few images to tell" if rose is None else "which is right" if rose == rises else "which is wrong"
    mu, variance, sigma2 = zip(*((mu.sum(), np.trace(of), of.sum()) for mu, of in sides), strict=True)
    return (
        f"By |H_P|^2 ({', '.join(f'{value:.3g}' for value in gain)}) and with independent bands, Theorem 1 predicts "
        f"the margin to go from {mu[0]:.3g} to {mu[2]:.3g}, sigma^2 from {variance[0]:.3g} to {variance[2]:.3g}, and "
        f"1/r to {'rise' if rises else 'fall'} from {before['independent']:.3g} to {predicted['independent']:.3g}: "
        f"{outcome}. Measured: margin {mu[0]:.3g} to {mu[1]:.3g}, sigma^2 {sigma2[0]:.3g} to {sigma2[1]:.3g}, 1/r "
        f"{before['mu_over_sigma']:.3g} to {after['mu_over_sigma']:.3g}; accuracy changed by {accuracy} points."
    )


def _above(interval: tuple[float, float] | None, edge: float) -> bool | None:
    """Return whether an interval lies above an edge; None if it contains the edge, or without an interval."""
    return None if interval is None or interval[0] <= edge <= interval[1] else interval[0] > edge
