"""The kernel distance (KID) between generated and real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.metrics.base import around, jackknife_error
from bigain.metrics.reference import Array, Distance, Features
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

# Rows of the kernel matrix computed at a time.
_ROWS = 1024


class KernelDistance(Distance):
    """`kernel[protocol]` with its standard error, if the reference has features."""

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        if self.reference.features is None:
            return {}
        mean, error = kernel_distance(self.features(records), self.reference.features)
        return {self.label("kernel"): {**around(mean, error, len(records)), "standard_error": error}}


def kernel_distance(x: Features, y: Features) -> tuple[float, float]:
    """Compute the kernel distance (KID; Binkowski et al., 2018) and its standard error.

    The unbiased squared maximum mean discrepancy under `(x . y / d + 1)^3` over all images: 0 on average for two sets
    of one distribution at any size, so it can be negative. Other packages average it over random subsets.

    The standard error is that of the jackknife over the images of both sets. The spread over subsets, which other
    packages report, depends on the size of the subsets instead.

    Args:
        x: Features of one set. `(n_x, d)`.
        y: Features of the other. `(n_y, d)`.

    Returns:
        The distance and its standard error.

    Raises:
        InputError: If a set has fewer than 3 images.
    """
    if min(len(x), len(y)) < 3:
        raise InputError(f"a kernel distance needs at least 3 images in each set, not {min(len(x), len(y))}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    between_x, between_y = _kernel_sums(x, y)
    distance, variance = -2 * between_x.sum() / (len(x) * len(y)), 0.0
    for points, between, others in ((x, between_x, len(y)), (y, between_y, len(x))):
        n = len(points)
        within = _kernel_sums(points, points)[0] - (np.square(points).sum(1) / points.shape[1] + 1) ** 3
        distance += within.sum() / (n * (n - 1))
        # The terms that change when an image is left out, for each image.
        left_out = (within.sum() - 2 * within) / ((n - 1) * (n - 2))
        left_out -= 2 * (between.sum() - between) / ((n - 1) * others)
        variance += jackknife_error(left_out) ** 2
    return float(distance), float(np.sqrt(variance))


def _kernel_sums(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the sums of the kernel over y for each x, and over x for each y. `(n_x,)`, `(n_y,)`."""
    rows, columns = [], np.zeros(len(y))
    for block in np.array_split(x, -(-len(x) // _ROWS)):
        kernel = (block @ y.T / x.shape[1] + 1) ** 3
        rows.append(kernel.sum(1))
        columns += kernel.sum(0)
    return np.concatenate(rows), columns
