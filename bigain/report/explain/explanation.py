"""Margins, frequency response and change of accuracy of runs against their baseline, and their text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigain.errors import InputError
from bigain.report.comparison import Comparison, compare
from bigain.report.explain.frequency import Response, load_response, mean_over_modules
from bigain.report.explain.margins import TIME, Floats, Margins, change_intervals, margins, read_errors, share
from bigain.report.explain.spectrum import DEVIATIONS, Spectrum, spectra_lines, spectra_row, spectrum
from bigain.report.statistics import ENOUGH
from bigain.report.tables import indented
from bigain.runs.numbers import counted, decimals, signed
from bigain.runs.results import Run

_HOW_TO_STORE = (
    "No frequency response is stored; run it again with --trainer.callbacks+=bigain.callbacks.FrequencyResponse, "
    "which writes to a different directory."
)
_EXPECTED = {
    "helps": "by Theorem 1 compression should help",
    "hurts": "by Theorem 1 compression should hurt",
    "level": "Theorem 1 sees no difference",
    None: "Theorem 1 says nothing if no mean margin is positive",
}
_NOTES = (
    "margin: mean of error(best wrong class) - error(true class); deviation: of single margins over images and trials.",
    "r: deviation / margin (over noise / margin where there is that column), - where the margin is not positive.",
    "->: the run.",
    "theorem: Theorem 1's bound on the error of the mean of this many trials, if they were drawn independently.",
    "bound: Cantelli's, from the spread of the images' mean margins; the wrong share never exceeds it.",
    "wrong: images whose mean margin on these trials alone is not positive.",
)
_ONE_NOISE = (
    "With one noise per timestep, the deviation in a band of timesteps is between images, not the theorem's, which is "
    "over noise at one timestep: run with --model.noises 4."
)
_OVER_NOISE = "over noise: the theorem's deviation, over the noises at one timestep of one image; r and theorem use it."
_HEADERS = ("margin", "deviation", "r", "theorem", "bound", "wrong")


@dataclass(frozen=True)
class Band:
    """Margins of both runs on the same trials of the same images.

    Attributes:
        low: First timestep.
        high: First timestep above the band.
        base: Margins of the baseline.
        run: Margins of the run.
        interval: 95 % paired-bootstrap interval of the change of 1 / r; None if it does not exist, as with few images.
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

        None with too few images, or if neither margin is positive: both bounds are 1.
        """
        if len(self.run.mean) < ENOUGH or self.change is None or (self.base.mu <= 0 and self.run.mu <= 0):
            return None
        return "helps" if self.change > 0 else "hurts" if self.change < 0 else "level"

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
            "over_noise": self.run.noise is not None,
            "theorem": self.criterion,
        }


@dataclass(frozen=True)
class Explanation:
    """Why a run differs from its baseline.

    Attributes:
        comparison: Accuracy, image by image.
        classes: Number of classes.
        overall: Margins over all shared trials.
        bands: Margins by timestep, without bands that have no shared trial.
        response: The frequency response that the run stored.
        spectra: Margins by frequency of both, and `|H_P|^2` if it was measured; None unless both runs stored them.
    """

    comparison: Comparison
    classes: int
    overall: Band
    bands: Sequence[Band]
    response: Response | None
    spectra: tuple[Spectrum, Spectrum, Floats | None] | None

    def row(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {
            **self.comparison.row(),
            "classes": self.classes,
            "margins": self.overall.row(),
            "margins_by_timestep": [band.row() for band in self.bands],
            "margins_by_frequency": self.spectra and spectra_row(*self.spectra),
            "frequencies": self.response and self.response.row(),
        }


def explain(
    base: Run, runs: Sequence[Run], bands: int, allowed: bool = False
) -> tuple[list[Explanation], list[InputError]]:
    """Compare margins of runs and their baseline, also in a number of `bands` of timesteps; `allowed` as of `compare`.

    Returns:
        Explanations in the order of `runs`, and for each run that has none an error that names it.

    Raises:
        InputError: If the baseline stored no errors.
    """
    base_errors = read_errors(base)
    comparisons, refused = compare(base, runs, allowed=allowed)
    edges = [TIME * k / bands for k in range(bands + 1)]
    explanations = []
    for comparison in comparisons:
        path = comparison.run.path
        try:
            first, second, trials = share(base_errors, read_errors(comparison.run), (str(base.path), str(path)))
            response = load_response(path)
        except InputError as error:
            refused.append(error)
            continue
        measured: list[tuple[float, float, Margins, Margins]] = []
        for low, high in ((0, TIME), *itertools.pairwise(edges)):
            inside = trials & (first.timesteps >= low) & (first.timesteps < high)
            before, after = (margins(errors, inside) for errors in (first, second))
            if before is not None and after is not None:
                if measured and measured[0][2].noise is None:
                    # All rows of the table show the same kind of deviation.
                    before, after = replace(before, noise=None), replace(after, noise=None)
                measured.append((low, high, before, after))
        intervals = change_intervals([entry[2:] for entry in measured], len(first.label), title=comparison.names[0])
        overall, *by_timestep = [Band(*entry, ends) for entry, ends in zip(measured, intervals, strict=True)]
        spectra = None
        if (base_spectrum := spectrum(first, trials)) and (run_spectrum := spectrum(second, trials)):
            stored = comparison.run.results["protocol"]["bands"]
            gain = None if response is None else response.gain(stored["grid"], stored["count"])
            spectra = base_spectrum, run_spectrum, gain
        explanations.append(Explanation(comparison, first.errors.shape[1], overall, by_timestep, response, spectra))
    return explanations, refused


def explanation_lines(explanations: Sequence[Explanation]) -> list[str]:
    """Return the lines of text for explanations of runs against one baseline."""
    lines: list[str] = []
    for explanation in explanations:
        comparison = explanation.comparison
        lines = lines or [f"baseline: {comparison.titles[1]}", ""]
        lines += [comparison.titles[0], "", *_frequencies(explanation), ""]
        lines += [*_margins(explanation), "", comparison.sentence(), _verdict(explanation), *comparison.remarks, ""]
        if explanation.spectra:
            change = signed(comparison.metric.difference, comparison.digits)
            *of_run, of_base = spectra_lines(*explanation.spectra, comparison.names, change)
            # The baseline's sentence is the same for all runs on the same trials.
            lines += [*of_run, *([] if of_base in lines else [of_base]), ""]
    noises = any(explanation.overall.run.noise is not None for explanation in explanations)
    return [*lines, *_NOTES, _OVER_NOISE if noises else _ONE_NOISE]


def _frequencies(explanation: Explanation) -> list[str]:
    response, comparison = explanation.response, explanation.comparison
    if response is None:
        return [_HOW_TO_STORE] if comparison.run.compressors else ["Nothing is compressed, so no frequency is lost."]
    lines = [f"Not measured, since the compressor cannot report it: {name}." for name in response.not_measured]
    if not response.sites:
        return lines
    names, shares, bands = response.names, response.shares(), [*itertools.pairwise(response.bands)]
    if len(names) > 1:
        names, shares = [*names, "mean of these"], np.append(shares, mean_over_modules(shares)[:, None], 1)
    headers = ["frequency, 1 is the highest", *(f"{low:.2g}-{high:.2g}" for low, high in bands)]
    rows = [[name, *map(_pair, *module)] for name, module in zip(names, shares.swapaxes(0, 1), strict=True)]
    measured = f"{counted(response.images, 'image')}, {counted(response.batches, 'batch')}"
    lines.append(f"Energy kept / destroyed, in percent of the energy of each band of frequencies ({measured}):")
    return [*lines, indented(headers, rows)]


def _margins(explanation: Explanation) -> list[str]:
    overall = explanation.overall
    images, trials, per_image = len(overall.run.mean), int(overall.run.trials.sum()), overall.run.n
    names = [*_HEADERS, *(["over noise"] if overall.run.noise is not None else [])]
    headers = ["timesteps", "trials", *(header for name in names for header in (name, "->"))]
    bands = {f"{math.ceil(band.low)}-{math.ceil(band.high) - 1}": band for band in explanation.bands}
    rows = [_row(band, name) for name, band in {**bands, "all": overall}.items()]
    return [
        f"Margins of the true class to the best of {explanation.classes - 1} wrong ones, on the trials in which both "
        f"runs evaluated every class (n = {counted(images, 'image')}, {trials:,} trials, {per_image:.3g} per image):",
        indented(headers, [row[: len(headers)] for row in rows]),
    ]


def _row(band: Band, name: str) -> list[str]:
    cells = []
    for m in (band.base, band.run):
        shares = [_percent(share) for share in (m.theorem_bound, m.cantelli_bound, m.error)]
        cells.append([f"{m.mu:.4g}", f"{m.sigma:.4g}", _number(m.r), *shares, _number(m.sigma_over_noise)])
    return [name, f"{band.run.n:.3g}", *itertools.chain(*zip(*cells, strict=True))]


def _verdict(explanation: Explanation) -> str:
    """Return Theorem 1's verdict on the margins, and the measured change."""
    overall, comparison = explanation.overall, explanation.comparison
    before, after = overall.base, overall.run
    moved = "fell" if after.mu < before.mu else "rose" if after.mu > before.mu else "stayed"
    uncertain = overall.change and (overall.interval is None or overall.interval[0] <= 0 <= overall.interval[1])
    doubt = ", though the images are too few to distinguish the change from zero" if uncertain else ""
    expected = f"{_EXPECTED[overall.criterion]}{doubt}"
    if len(after.mean) < ENOUGH:
        expected = f"a verdict takes {ENOUGH} images"
    return (
        f"The margin {moved} from {before.mu:.4g} to {after.mu:.4g}. With the deviation "
        f"{DEVIATIONS[before.noise is not None]}, r went from {_number(before.r)} to "
        f"{_number(after.r)} and 1/r from {_number(before.mu_over_sigma)} to {_number(after.mu_over_sigma)}"
        f" ({_change_text(overall.interval, len(after.mean))}): {expected}. Its bound went from "
        f"{_percent(before.theorem_bound)} to {_percent(after.theorem_bound)}, the share that is wrong on these trials "
        f"from {_percent(before.error)} to {_percent(after.error)}; with all trials accuracy changed by "
        f"{signed(comparison.metric.difference, comparison.digits)} points."
    )


def _change_text(interval: tuple[float, float] | None, images: int) -> str:
    """Return the interval of a change of 1 / r in words, or why there is none."""
    if interval is None:
        few = images < ENOUGH
        return "too few images for an interval" if few else "no interval: margins do not vary in some resamples"
    digits = decimals(0.0, *interval)
    return f"95 % interval of the change {' to '.join(signed(end, digits) for end in interval)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _pair(kept: float, destroyed: float) -> str:
    return "-" if math.isnan(kept) else f"{100 * kept:.0f}/{100 * destroyed:.0f}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.3g} %" if share < 1 else f"{100 * share:.0f} %"
