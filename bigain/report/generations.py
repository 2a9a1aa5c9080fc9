"""Compare generations with a base generation, metric by metric, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigain.errors import InputError
from bigain.report.comparison import Comparison, checked, compared, names_of, opening, p_text, remarks_on
from bigain.report.pairing import shared_images
from bigain.report.statistics import ALPHA, Paired, holm, holm_levels
from bigain.runs.logs import finished_images
from bigain.runs.names import metric_title
from bigain.runs.numbers import decimals
from bigain.runs.results import Run, read_ids
from bigain.runs.schema import Better

# What the numbers mean, wherever they are printed.
GENERATIONS = (
    "+- is half the interval: normal, from the jackknife error of the difference, where an image is left out of both "
    "runs at once; of agreement as for classifications, with the exact McNemar test. It is a 95 % interval; of "
    "several runs each has the level at which Holm's method tests it, metric by metric. It excludes 0 exactly if the "
    "difference is significant."
)


@dataclass(frozen=True)
class PairedMetric:
    """A metric of two generations on the same images.

    Attributes:
        name: Of the metric.
        unit: Of the metric.
        better: Whether more or less is better.
        value: Of the run.
        base: Of the base run.
        error: Standard error of the difference.
        n: Number of images.
        counts: Discordant images of a metric that is a share of them; `error` is not used.
    """

    name: str
    unit: str
    better: Better
    value: float
    base: float
    error: float
    n: int
    counts: Paired | None = None

    @property
    def p(self) -> float:
        """P-value of the difference, which is normal around 0 under the null hypothesis."""
        from scipy.special import ndtr

        difference = abs(self.value - self.base)
        return 2 * float(ndtr(-difference / self.error)) if self.error else float(not difference)


@dataclass(frozen=True)
class Difference:
    """A metric of one generation against the base run.

    Attributes:
        run: The run.
        base: The run it is compared with.
        metric: The metric of both.
        p_corrected: P-value, corrected for all runs compared with this base (Holm).
        tests: Number of those runs.
        level: Level at which Holm's method tests the difference, and of the interval.
        blocking: Differences besides the compressors that make a comparison misleading.
        minor: Other differences.
    """

    run: Run
    base: Run
    metric: PairedMetric
    p_corrected: float
    tests: int
    level: float
    blocking: Sequence[str]
    minor: Sequence[str]

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at 0.05 after correction."""
        return self.p_corrected < ALPHA

    @property
    def half(self) -> float:
        """Half the interval, which excludes 0 exactly if the difference is significant."""
        from scipy.special import ndtri

        return float(ndtri(1 - self.level / 2)) * self.metric.error

    @property
    def remarks(self) -> list[str]:
        """Sentences on differences besides the compressors."""
        return remarks_on(self.blocking, self.minor)

    def sentence(self) -> str:
        """Return the outcome in words; the better run comes first if the difference is significant."""
        metric, names, half = self.metric, names_of(self.run, self.base), self.half
        difference = metric.value - metric.base
        worse = difference < 0 if metric.better == "higher" else difference > 0
        shown = abs(difference) if self.significant else difference
        digits = decimals(difference, difference - half, difference + half)
        size = " ".join(filter(None, (f"{abs(difference):.{digits}f} +- {half:.{digits}f}", metric.unit)))
        text = opening(names[::-1] if self.significant and worse else names, difference, size, self.significant)
        tests = f", p = {p_text(self.p_corrected)} with correction for {self.tests} tests" if self.tests > 1 else ""
        interval = f"{100 * (1 - self.level):.4g} % interval {shown - half:.{digits}f} to {shown + half:.{digits}f}"
        return (
            f"{metric_title(metric.name)}: {text} ({interval}, n = {metric.n:,}; paired p = {p_text(metric.p)}{tests})."
        )

    def row(self) -> dict[str, Any]:
        """Return plain values for a file."""
        metric, difference = self.metric, self.metric.value - self.metric.base
        return {
            **{"metric": metric.name, "run": str(self.run.path), "base": str(self.base.path)},
            **dict(zip(("compressor", "base_compressor"), names_of(self.run, self.base), strict=True)),
            **{"n": metric.n, "value": metric.value, "base_value": metric.base, "difference": difference},
            **{"low": difference - self.half, "high": difference + self.half, "standard_error": metric.error},
            **{"confidence": round(100 * (1 - self.level), 2), "p": metric.p, "p_corrected": self.p_corrected},
            **{"tests": self.tests, "significant": self.significant},
            **{"differs": list(self.blocking), "also_differs": list(self.minor)},
        }


@dataclass(frozen=True)
class AgreementDifference:
    """The share of images with the class they were made for, of one generation against the base run."""

    metric: PairedMetric
    comparison: Comparison

    @property
    def run(self) -> Run:
        """The run that is compared with the base."""
        return self.comparison.run

    @property
    def tests(self) -> int:
        """Number of runs compared with the base."""
        return self.comparison.tests

    @property
    def remarks(self) -> list[str]:
        """Sentences on differences besides the compressors."""
        return self.comparison.remarks

    def sentence(self) -> str:
        """Return the outcome in words."""
        return f"{metric_title(self.metric.name)}: {self.comparison.sentence()}"

    def row(self) -> dict[str, Any]:
        """Return plain values for a file; differences are in points."""
        return {"metric": self.metric.name, **self.comparison.row()}


Measure = Callable[[Run, Run, Sequence[str]], tuple[list[PairedMetric], list[str]]]


def compare_generations(
    base: Run, runs: Sequence[Run], measure: Measure, allowed: bool = False
) -> tuple[list[Difference | AgreementDifference], list[str]]:
    """Compare generations with a base run.

    Args:
        base: The run that the others are compared with.
        runs: The others.
        measure: Returns the metrics of a run and the base on images, and why others are missing.
        allowed: Compare although images, seed, protocol or versions differ, on the images that both have.

    Returns:
        The differences by run and metric, and what is left out, with the reason.
    """
    base_ids, reasons = _ids(base), []
    families: dict[str, list[tuple[Run, PairedMetric, list[str], list[str]]]] = {}
    for run in runs:
        try:
            if run.task != base.task:
                raise InputError(f"{run.path} is a run of {run.task}, {base.path} of {base.task}; compare one task")
            ids = _ids(run)
            blocking, minor = checked(run, base, ids, base_ids, allowed)
            metrics, missing = measure(run, base, ids[shared_images(ids, base_ids)[0]].tolist())
        except InputError as error:
            reasons.append(str(error))
            continue
        reasons += missing
        for metric in metrics:
            families.setdefault(metric.name, []).append((run, metric, blocking, minor))
    results: list[Difference | AgreementDifference] = []
    for family in families.values():
        values = [metric.p for _, metric, *_ in family]
        counted = [(run, metric.counts, left, right) for run, metric, left, right in family if metric.counts]
        results += [
            AgreementDifference(metric, comparison)
            for (_, metric, *_), comparison in zip(family, compared(base, counted), strict=False)
        ] or [
            Difference(run, base, metric, corrected, len(family), level, blocking, minor)
            for (run, metric, blocking, minor), corrected, level in zip(
                family, holm(values), holm_levels(values), strict=True
            )
        ]
    return sorted(results, key=lambda result: runs.index(result.run)), reasons


def _ids(run: Run) -> np.ndarray[Any, np.dtype[np.str_]]:
    """Return the ids of the finished images, sorted."""
    return np.array(sorted({*read_ids(run.path)} & finished_images(run.path / "predictions").keys()), np.str_)
