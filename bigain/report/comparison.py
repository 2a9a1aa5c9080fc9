"""Compare runs with a base run, metric by metric, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tqdm import tqdm

from bigain.errors import InputError
from bigain.report.pairing import Ids, differences, outcomes, pair, shared_images
from bigain.report.statistics import (
    ALPHA,
    ENOUGH,
    Paired,
    difference_interval,
    holm,
    holm_levels,
    mcnemar,
    smallest_detectable,
)
from bigain.runs.columns import read_columns
from bigain.runs.names import label, metric_title
from bigain.runs.numbers import counted, decimals
from bigain.runs.results import Run
from bigain.runs.schema import Better

# Explains the numbers wherever comparisons are printed.
INTERVALS = (
    f"+- is half the interval. Of shares of images: paired bootstrap, with fewer than {ENOUGH} discordant images the "
    "score interval of a paired difference; exact next to 0 where these contradict the exact two-sided McNemar test. "
    "Of other metrics: normal, from the error of the difference of the same images. It is a 95 % interval; of several "
    "runs each has the level at which Holm's method tests it. It excludes 0 exactly if the difference is significant."
)


@dataclass(frozen=True)
class PairedMetric:
    """A metric of a run and the base run on the same n images, in percent if it is a share of images.

    Attributes:
        error: Standard error of the difference; not used with `counts`.
        counts: Discordant images if the metric is a share of images; `first` is the run.
    """

    name: str
    unit: str
    better: Better
    value: float
    base: float
    n: int
    error: float = 0.0
    counts: Paired | None = None

    @classmethod
    def share(cls, name: str, correct: Any, base_correct: Any) -> PairedMetric:
        """Return the share of images that are classified correctly, from two columns `(n,)`."""
        shares = 100 * float(correct.mean()), 100 * float(base_correct.mean())
        return cls(name, "points", "higher", *shares, len(correct), counts=Paired.of(correct, base_correct))

    @property
    def difference(self) -> float:
        """Value of the run minus that of the base."""
        return 100 * self.counts.difference if self.counts else self.value - self.base

    @property
    def p(self) -> float:
        """P-value of the exact McNemar test, or of a difference that is normal around 0."""
        from scipy.special import ndtr

        if self.counts:
            return mcnemar(self.counts)
        return 2 * float(ndtr(-abs(self.difference) / self.error)) if self.error else float(not self.difference)


class Measure(NamedTuple):
    """How runs of a task are compared.

    Attributes:
        ids: Returns the unique ids of the images of a run.
        metrics: Returns the metrics of a run and the base on the given images, and why others are missing.
    """

    ids: Callable[[Run], Ids]
    metrics: Callable[[Run, Run, Ids], tuple[list[PairedMetric], list[InputError]]]


def _accuracies(run: Run, base: Run, ids: Ids) -> tuple[list[PairedMetric], list[InputError]]:
    names = [name for name in ("linear_probe", "knn") if name in run.metrics and name in base.metrics]
    if run.task == "classification":
        names = [run.main_metric or ""]
    if not names:
        raise InputError(f"{run.path} and {base.path} share no accuracy of features; kNN needs two images of a class")
    paths = str(run.path), str(base.path)
    return [PairedMetric.share(name, *pair(outcomes(run, name), outcomes(base, name), paths)) for name in names], []


ACCURACY = Measure(lambda run: outcomes(run, run.main_metric or "").image_id, _accuracies)
PROBES = Measure(lambda run: read_columns(run.path, "image_id")[0], _accuracies)


@dataclass(frozen=True)
class Comparison:
    """A metric of one run against the base run.

    Attributes:
        p_corrected: P-value, corrected for all runs compared with this base (Holm).
        tests: Number of those runs.
        level: Level at which Holm's method tests the difference; 0.05 for a single run.
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

    @cached_property
    def interval(self) -> tuple[float, float, str]:
        """Ends of the interval of the difference, which excludes 0 exactly if it is significant, and its kind."""
        from scipy.special import ndtri

        if self.metric.counts:
            low, high, kind = difference_interval(self.metric.counts, self.level)
            return 100 * low, 100 * high, kind
        half = float(ndtri(1 - self.level / 2)) * self.metric.error
        return self.metric.difference - half, self.metric.difference + half, "normal"

    @property
    def confidence(self) -> float:
        """Confidence level of the interval, in percent."""
        return round(100 * (1 - self.level), 2)

    @property
    def digits(self) -> int:
        """Decimals of the difference and its interval."""
        return decimals(self.metric.difference, *self.interval[:2])

    @property
    def detectable(self) -> float | None:
        """Smallest difference in points that this number of images could show; None if there is none, or no counts."""
        smallest = self.metric.counts and smallest_detectable(self.metric.counts, self.tests)
        return 100 * smallest if smallest else None

    @property
    def names(self) -> tuple[str, str]:
        """Compressors of the run and the base, with models and directories where they distinguish the two."""
        name, base_name = label(self.run.compressors), label(self.base.compressors)
        if self.run.model != self.base.model:
            name, base_name = f"{name} on {self.run.model}", f"{base_name} on {self.base.model}"
        return (name, base_name) if name != base_name else (f"{self.run.path} ({name})", f"{self.base.path} ({name})")

    @property
    def titles(self) -> tuple[str, str]:
        """Compressor and directory of the run and the base."""
        title, base_title = (f"{label(run.compressors)}, {run.path}" for run in (self.run, self.base))
        return title, base_title

    @property
    def remarks(self) -> list[str]:
        """Sentences on differences besides the compressors; those that make the comparison misleading come first."""
        cautions = [f"Caution: they also differ in {'; '.join(self.blocking)}."] if self.blocking else []
        return cautions + ([f"They also differ in {'; '.join(self.minor)}."] if self.minor else [])

    def sentence(self) -> str:
        """Return the outcome in words; the better run comes first if the difference is significant."""
        metric, counts, names, digits = self.metric, self.metric.counts, self.names, self.digits
        low, high, kind = self.interval
        worse = metric.difference < 0 if metric.better == "higher" else metric.difference > 0
        size = f"{abs(metric.difference):.{digits}f} +- {(high - low) / 2:.{digits}f} {metric.unit}".rstrip()
        if self.significant:
            names = names[::-1] if worse else names
            low, high = (-high, -low) if metric.difference < 0 else (low, high)
            text = f"{names[0]} beats {names[1]} by {size}"
        elif not metric.difference:
            text = f"{names[0]} and {names[1]} are level"
        else:
            side = "above" if metric.difference > 0 else "below"
            text = f"{names[0]} is {size} {side} {names[1]}, which is no significant difference"
        text = text if self.run.task == "classification" else f"{metric_title(metric.name)}: {text}"
        interval = "interval" if kind in ("bootstrap", "normal") else f"{kind} interval"
        text += f" ({self.confidence:g} % {interval} {low:z.{digits}f} to {high:z.{digits}f}, n = {metric.n:,}"
        tests = f", p = {p_text(self.p_corrected)} with correction for {self.tests} tests" if self.tests > 1 else ""
        text += f"; {'McNemar' if counts else 'paired'} p = {p_text(metric.p)}{tests})"
        if counts is None:
            return f"{text}."
        if not counts.discordant:
            return f"{text}; there is no discordant image."
        first, second = (counts.second, counts.first) if self.significant and worse else (counts.first, counts.second)
        text += f"; of {counted(counts.discordant, 'discordant image')} {names[0]} gets {first:,} right, "
        text += f"{names[1]} {second:,}."
        if self.detectable is not None:
            return f"{text} n = {metric.n:,} detects {self.detectable:.{digits}f} points with 80 % power."
        too_few = f" n = {metric.n:,} is too few to detect any difference with 80 % power."
        return text if self.significant else text + too_few

    def row(self) -> dict[str, Any]:
        """Return plain values for a file; shares of images and their differences are in percent and points."""
        return {name: value_of(self) for name, value_of in COLUMNS.items()}


# Columns of a comparison in files.
COLUMNS: Mapping[str, Callable[[Comparison], Any]] = {
    "run": lambda c: str(c.run.path),
    "base": lambda c: str(c.base.path),
    "compressor": lambda c: c.names[0],
    "base_compressor": lambda c: c.names[1],
    "metric": lambda c: c.metric.name,
    "n": lambda c: c.metric.n,
    "value": lambda c: c.metric.value,
    "base_value": lambda c: c.metric.base,
    "difference": lambda c: c.metric.difference,
    "low": lambda c: c.interval[0],
    "high": lambda c: c.interval[1],
    "interval": lambda c: c.interval[2],
    "confidence": lambda c: c.confidence,
    "standard_error": lambda c: None if c.metric.counts else c.metric.error,
    "discordant": lambda c: c.metric.counts and c.metric.counts.discordant,
    "only_run_right": lambda c: c.metric.counts and c.metric.counts.first,
    "only_base_right": lambda c: c.metric.counts and c.metric.counts.second,
    "p": lambda c: c.metric.p,
    "p_corrected": lambda c: c.p_corrected,
    "tests": lambda c: c.tests,
    "significant": lambda c: c.significant,
    "smallest_detectable": lambda c: c.detectable,
    "differs": lambda c: list(c.blocking),
    "also_differs": lambda c: list(c.minor),
}


def compare(
    base: Run, runs: Sequence[Run], measure: Measure = ACCURACY, allowed: bool = False
) -> tuple[list[Comparison], list[InputError]]:
    """Compare runs with a base run.

    Args:
        base: The run that the others are compared with.
        runs: The others.
        measure: How runs of the base's task are compared.
        allowed: Compare although images, seed, protocol or versions differ, on the images that both have.

    Returns:
        Comparisons in the order of `runs`, and for each run or metric that is left out an error that names it.

    Raises:
        InputError: If the base run cannot be compared with anything.
    """
    base_ids = measure.ids(base)
    families: dict[str, list[tuple[int, PairedMetric, list[str], list[str]]]] = {}
    refused: list[InputError] = []
    for index, run in enumerate(tqdm(runs, desc="comparing", unit="run", disable=None, leave=False, delay=2)):
        try:
            if run.task != base.task:
                raise InputError(f"{run.path} is a run of {run.task}, {base.path} of {base.task}; compare one task")
            if run.path.resolve() == base.path.resolve():
                raise InputError(f"{run.path} is the base itself")
            ids = measure.ids(run)
            blocking, minor = differences(run, base, ids, base_ids)
            if blocking and not allowed:
                raise InputError(
                    f"{run.path} and {base.path} differ in more than the compressor: {'; '.join(blocking)}; compare "
                    "runs that agree in these, or give --allow-differences to pair the images that both have"
                )
            metrics, missing = measure.metrics(run, base, ids[shared_images(ids, base_ids)[0]])
        except InputError as error:
            metrics, missing = [], [error]
        refused += missing
        for metric in metrics:
            families.setdefault(metric.name, []).append((index, metric, blocking, minor))
    compared = []
    for family in families.values():
        values = [metric.p for _, metric, *_ in family]
        for (index, metric, *differs), p, level in zip(family, holm(values), holm_levels(values), strict=True):
            compared.append((index, Comparison(runs[index], base, metric, p, len(family), level, *differs)))
    return [comparison for _, comparison in sorted(compared, key=lambda item: item[0])], refused


def p_text(p: float) -> str:
    """Format a p-value with two digits, or one below 0.0001."""
    return f"{p:.2g}" if p >= 1e-4 or not p else f"{p:.0e}"
