"""Margins by frequency of the residual: what Theorem 1 of BiGain assumes of them, and what it predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.report.explain.margins import Errors, Floats, resampled, trial_margins
from bigain.report.statistics import ALPHA, ENOUGH
from bigain.report.tables import indented
from bigain.runs.numbers import counted, with_interval

# Statements of the paper: a name in `numbers`, a threshold, whether it should lie above, scale and unit, words. Weak is
# less than a medium correlation (Cohen, Statistical Power Analysis, 1988).
_STATEMENTS = (
    ("low_margin", 0.5, True, 100, "%", "low bands dominate the margin", "the lower half has"),
    ("high_variance", 0.5, True, 100, "%", "high bands dominate the variance", "the upper half has"),
    ("mean_correlation", 0.3, False, 1, "", "cross-band correlation is weak", "it is on average"),
)
_VERDICTS = {True: "holds", False: "does not hold", None: "is undecided"}
# What Theorem 1 predicts: a name in `numbers`, in words, the name of the verdict in files.
_PREDICTED = (
    ("margin", "margin", "margin_verdict"),
    ("variance", "sigma^2", "variance_verdict"),
    ("mu_over_sigma", "1/r", "verdict"),
)
DEVIATIONS = {True: "over noises", False: "between images and trials"}


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

    def statements(self) -> list[dict[str, Any]]:
        """Return what was measured for each statement of the paper and whether it holds, None if undecided."""
        values, rows = numbers(self.mu, self.covariance), []
        for name, threshold, should_exceed, *_, statement, _ in _STATEMENTS:
            ends = self.interval(name)
            above = _above(ends, threshold)
            row = {"statement": statement, "measure": name, "value": _finite(values[name]), "interval": ends}
            rows.append({**row, "threshold": threshold, "holds": None if above is None else above == should_exceed})
        return rows

    def sentence(self) -> str:
        """Return the statements in words."""
        clauses = []
        for row, (name, threshold, should_exceed, scale, unit, statement, subject) in zip(
            self.statements(), _STATEMENTS, strict=True
        ):
            ends = row["value"], *(row["interval"] or (None, None))
            value, low, high = (None if end is None else scale * end for end in ends)
            number = with_interval(value, low, high, unit, "95 % interval ")
            if row["interval"] is None:
                why = "the margin is not positive" if name == "low_margin" else "a margin does not vary"
                number += f" ({'too few images' if self.images < ENOUGH else f'{why} in some resamples'}: no interval)"
            limit = f"{'above' if should_exceed else 'below'} {scale * threshold:g} {unit}".rstrip()
            clauses.append(f'"{statement}" ({limit}) {_VERDICTS[row["holds"]]}: {subject} {number}')
        shared = 100 - 100 * np.trace(self.covariance) / self.covariance.sum()
        return (
            f"{'; '.join(clauses)}; summed over all pairs of bands, weak or not, covariances are {shared:.2g} % of the "
            "variance of the margin."
        )


def numbers(mu: Floats, covariance: Floats) -> dict[str, Floats]:
    """Compute the numbers of statements, `(...)` each, from moments `(..., b)`, `(..., b, b)`; not finite if undefined.

    The share of the mean and the lower half of the bands in the margin, that of the upper half in the bands' variances,
    the mean absolute correlation of two bands, and the margin, its variance and `mu / sigma`.
    """
    variances, half = np.diagonal(covariance, axis1=-2, axis2=-1), (mu.shape[-1] + 1) // 2
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = correlation(covariance)[..., *np.triu_indices(mu.shape[-1], 1)]
        return {
            "low_margin": np.where(mu.sum(-1) > 0, mu[..., :half].sum(-1) / mu.sum(-1), np.nan),
            "high_variance": variances[..., half:].sum(-1) / variances.sum(-1),
            "mean_correlation": np.abs(pairs).mean(-1),
            "margin": mu.sum(-1),
            "variance": covariance.sum((-2, -1)),
            "mu_over_sigma": mu.sum(-1) / np.sqrt(covariance.sum((-2, -1))),
        }


def correlation(covariance: Floats) -> Floats:
    """Return the correlations of covariances `(..., b, b)`."""
    sigma = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return covariance / (sigma[..., None] * sigma[..., None, :])


def spectrum(stored: Errors, trials: npt.NDArray[np.bool_]) -> Spectrum | None:
    """Return margins by frequency over the trials that count `(n, t)`; None if the run stored no such errors."""
    if not stored.bands.shape[3]:
        return None
    margin, centred, count = trial_margins(stored, trials, stored.bands)
    deviations, b = margin if centred is None else centred, margin.shape[2]
    products = np.einsum("ntb,ntc->nbc", deviations, deviations).reshape(len(count), -1)
    columns = np.concatenate([margin.sum(1), products], 1) / count[:, None]

    def moments(means: Floats) -> tuple[Floats, Floats]:
        mu, product = means[..., :b], means[..., b:].reshape(*means.shape[:-1], b, b)
        return mu, product - (mu[..., None] * mu[..., None, :] if centred is None else 0)

    draws = numbers(*moments(resampled(columns) / len(count)))
    return Spectrum(*moments(columns.mean(0)), len(count), centred is not None, draws)


def spectra_row(base: Spectrum, run: Spectrum, gain: Floats | None) -> dict[str, Any]:
    """Return plain values for a file."""
    row: dict[str, Any] = {}
    for name, side in (("base", base), ("run", run)):
        measured, moments = side.statements(), {"mu": side.mu.tolist(), "covariance": side.covariance.tolist()}
        row[name] = {**moments, "statements": [entry["holds"] for entry in measured], "measured": measured}
    gains = (None, None) if gain is None else (gain.tolist(), prediction(base, run, gain))
    return {**row, "over_noise": base.over_noise, "gain": gains[0], "prediction": gains[1]}


def prediction(base: Spectrum, run: Spectrum, gain: Floats) -> dict[str, Any]:
    """Return what Theorem 1 predicts of margin, variance and 1 / r by `|H_P|^2`, what was measured, and verdicts.

    A verdict is on the direction of a change. Predictions, and the values of the baseline before them, assume
    independent bands.
    """
    variances = np.diagonal(base.covariance)
    independent = [numbers(mu, np.diag(s)) for mu, s in ((base.mu, variances), (gain * base.mu, gain**2 * variances))]
    measured = [numbers(side.mu, side.covariance) for side in (base, run)]
    row: dict[str, Any] = {}
    for name, _, verdict in _PREDICTED:
        predicted = [_finite(side[name]) for side in independent]
        change, direction = run.interval(name, base), _direction(predicted)
        rose = _above(change, 0)
        row |= {
            name: predicted,
            f"measured_{name}": [_finite(side[name]) for side in measured],
            f"change_of_{name}_interval": change,
            verdict: None if None in (rose, direction) else "right" if rose == (direction == "rises") else "wrong",
        }
    return {**row, "rises": _direction(row["mu_over_sigma"]) == "rises"}


def _direction(values: Sequence[float | None]) -> str | None:
    """Return whether a prediction `rises` or `falls`; None if it stays within rounding, or has no value."""
    before, after = values
    if before is None or after is None or math.isclose(before, after):
        return None
    return "rises" if after > before else "falls"


def spectra_lines(base: Spectrum, run: Spectrum, gain: Floats | None, names: Sequence[str], accuracy: str) -> list[str]:
    """Return tables and sentences. `gain`: `|H_P|^2` by band; `names`: of run and baseline; `accuracy`: its change."""
    count, sides = len(base.mu) - 1, [(base.mu, base.covariance), (run.mu, run.covariance)]
    if gain is not None:
        # Margins are energies: the gain scales them and their deviations.
        sides.append((gain * base.mu, gain[:, None] * gain * base.covariance))
    suffixes = ("", "->", "predicted")[: len(sides)]
    headers = ["frequency", *(suffix or title for title in ("margin", "deviation") for suffix in suffixes)]
    columns = [*(mu for mu, _ in sides), *(np.sqrt(np.diagonal(covariance)) for _, covariance in sides)]
    bands = ["mean", *(f"{k / count:.2g}-{(k + 1) / count:.2g}" for k in range(count))]
    correlations = np.tril(correlation(base.covariance), -1) + np.triu(correlation(run.covariance))
    over_text = "noises at one timestep of one image" if base.over_noise else "images and trials"
    return [
        f"Margins by frequency of the residual, 1 is the highest, and deviations over {over_text} "
        f"(n = {counted(base.images, 'image')}):",
        _table(headers, bands, columns, ".3g"),
        "Correlation between bands, of the baseline below the diagonal, of the run above it:",
        _table(["", *bands], bands, correlations.T, ".2f"),
        *([] if gain is None else _prediction(base, run, gain, accuracy)),
        *(f"{name}: {side.sentence()}" for name, side in zip(names, (run, base), strict=True)),
    ]


def _table(headers: Sequence[str], names: Sequence[str], columns: Sequence[Floats] | Floats, style: str) -> str:
    cells = [[f"{value:{style}}" for value in row] for row in np.transpose(columns)]
    return indented(headers, [[name, *row] for name, row in zip(names, cells, strict=True)])


def _prediction(base: Spectrum, run: Spectrum, gain: Floats, accuracy: str) -> list[str]:
    """Return a table of what Theorem 1 predicts and what was measured, with heading and note."""
    row, cells = prediction(base, run, gain), []
    for name, title, verdict in _PREDICTED:
        predicted, measured = (
            " to ".join("-" if value is None else f"{value:.3g}" for value in row[key])
            for key in (name, f"measured_{name}")
        )
        change = _direction(row[name]) or "no change"
        ends = row[f"change_of_{name}_interval"]
        interval = "-" if ends is None else f"{ends[0]:+.3g} to {ends[1]:+.3g}"
        direction = row[verdict] or "undecided"
        cells.append([title, f"{predicted}, {change}", measured, interval, direction])
    return [
        f"Changes that Theorem 1 predicts by |H_P|^2 ({', '.join(f'{value:.3g}' for value in gain)}), and measured "
        f"with the deviation {DEVIATIONS[base.over_noise]}:",
        indented(["", "predicted", "measured", "95 % interval of the change", "direction"], cells),
        "sigma^2 and 1/r of the baseline differ: predictions assume independent bands, which leaves the covariances "
        f"between bands out; measured ones include them. Accuracy changed by {accuracy} points.",
    ]


def _finite(value: Floats) -> float | None:
    return float(value) if np.isfinite(value) else None


def _above(interval: tuple[float, float] | None, threshold: float) -> bool | None:
    """Return whether an interval lies above a threshold; None if it contains it, or without an interval."""
    return None if interval is None or interval[0] <= threshold <= interval[1] else interval[0] > threshold
