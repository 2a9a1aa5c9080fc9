"""The kernel distance (KID) between generated and real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.metrics.base import around
from bigain.metrics.reference import Array, Distance, Features
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate


class KernelDistance(Distance):
    """`kernel[protocol]` with its standard error, if the reference has features."""

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        if self.reference.features is None:
            return {}
        mean, error = kernel_distance(self.features(records), self.reference.features)
        return {self.label("kernel"): {**around(mean, error, len(records)), "standard_error": error}}


def kernel_distance(
    x: Features, y: Features, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Compute the kernel distance (KID; Binkowski et al., 2018) and its standard error.

    The unbiased squared maximum mean discrepancy under `(x . y / d + 1)^3`, averaged over random subsets: 0 on average
    for two sets of one distribution at any size, so it can be negative.

    The spread over subsets, which other packages report, is not the error of their mean: it depends on the subset size.
    Subsets of m out of n images, drawn without replacement, vary by `c (1/m - 1/n)`, the estimate itself by `c / n`;
    the first gives `c`. Conservative if the sets differ in size or are nearly alike in distribution.

    Args:
        x: Features of one set. `(n_x, d)`.
        y: Features of the other. `(n_y, d)`.
        subsets: Number of subsets, at least 2.
        size: Images of a subset, at most half of the smaller set.
        seed: Of the subsets.

    Returns:
        Mean and its standard error.

    Raises:
        InputError: If a set has fewer than 4 images.
    """
    n = min(len(x), len(y))
    m = min(size, n // 2)
    if m < 2:
        raise InputError(f"a kernel distance needs at least 4 images in each set, not {n}")
    draw = np.random.default_rng(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        chosen_x, chosen_y = draw.choice(len(x), m, replace=False), draw.choice(len(y), m, replace=False)
        values[i] = _discrepancy(np.asarray(x[chosen_x], np.float64), np.asarray(y[chosen_y], np.float64))
    variance = values.var(ddof=1) * (m / (n - m) + 1 / subsets)
    return float(values.mean()), float(np.sqrt(variance))


def _discrepancy(x: Array, y: Array) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets of equal size."""
    m, d = x.shape
    within = 0.0
    for points in (x, y):
        kernel = (points @ points.T / d + 1) ** 3
        within += float(kernel.sum() - np.trace(kernel)) / (m * (m - 1))
    return within - 2 * float(np.mean((x @ y.T / d + 1) ** 3))
