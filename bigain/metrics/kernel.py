"""The kernel distance (KID) between generated and real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import jackknife_error, normal_estimate
from bigain.metrics.reference import Array, Distance, Features
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

# Rows and columns of the kernel that are in memory at once.
_TILE = 2048
# From rows `(n, d)` and `(m, d)` to their kernel `(n, m)`.
Kernel = Callable[[Array, Array], Array]


class KernelDistance(Distance):
    """`kid[protocol]` with its standard error, if the reference has features; these count as exact.

    The kernel distance of Binkowski et al., Demystifying MMD GANs (2018): see `kernel_leave_one_out`.

    Attributes:
        key: Name of the estimate, without the protocol.
        scale: Factor of the published values.
    """

    key: ClassVar[str] = "kid"
    scale: ClassVar[float] = 1.0

    @staticmethod
    def kernel(a: Array, b: Array) -> Array:
        """Return the kernel of all pairs of rows: of KID `(a . b / d + 1)^3`. `(n, d)`, `(m, d)` -> `(n, m)`."""
        base = a @ b.T / a.shape[1] + 1
        return base * base * base

    def leave_one_out(self, x: Features, y: Features) -> tuple[float, Array]:
        """Compute the distance of two sets, and that without each image of `x`: see `kernel_leave_one_out`."""
        value, left_out = kernel_leave_one_out(x, y, self.kernel)
        return self.scale * value, self.scale * left_out

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        if self.reference.features is None:
            return {}
        value, left_out = self.leave_one_out(self.features(records), self.reference.features)
        error = jackknife_error(left_out)
        return {self.label(self.key): {**normal_estimate(value, error, len(records)), "standard_error": error}}


def kernel_leave_one_out(x: Features, y: Features, kernel: Kernel = KernelDistance.kernel) -> tuple[float, Array]:
    """Compute the kernel distance of two sets, and that without each image of the first.

    The unbiased squared maximum mean discrepancy under a kernel, over all pairs of images: 0 on average for
    two sets of one distribution at any size, so it can be negative. A pair of equal images within a set counts as any
    other pair.

    `jackknife_error` of the values without each image is the standard error if only `x` is a sample. If both are, the
    squares of both errors add up. Of two sets of the same items, `jackknife_error(a - b)` is the standard error of the
    difference. For sets that are alike in distribution it is too large by a factor of up to 1.4.

    Takes `(n_x + n_y)^2 d` operations.

    Args:
        x: Features of one set. `(n_x, d)`, at least 3 images.
        y: Features of the other. `(n_y, d)`, at least 2.
        kernel: That of KID by default.

    Returns:
        The distance, and the distances without each image of `x`, `(n_x,)`.
    """
    n, m = len(x), len(y)
    in_x, in_y, x_to_y = (_kernel_sums(a, b, kernel) for a, b in ((x, x), (y, y), (x, y)))
    within_x, within_y, between = in_x.sum() / (n * (n - 1)), in_y.sum() / (m * (m - 1)), x_to_y.mean() / m
    left_out = (in_x.sum() - 2 * in_x) / ((n - 1) * (n - 2)) + within_y
    left_out -= 2 * (x_to_y.sum() - x_to_y) / ((n - 1) * m)
    return float(within_x + within_y - 2 * between), left_out


def _kernel_sums(x: Features, y: Features, kernel: Kernel) -> Array:
    """Sum the kernel over `y` for each row of `x`; within one set each pair is computed once, none of one image."""
    sums, mirrored = np.zeros(len(x)), np.zeros(len(x))
    for i in range(0, len(x), _TILE):
        rows = np.asarray(x[i : i + _TILE], np.float64)
        for j in range(i if y is x else 0, len(y), _TILE):
            tile = kernel(rows, np.asarray(y[j : j + _TILE], np.float64))
            if y is x and i == j:
                np.fill_diagonal(tile, 0)
            elif y is x:
                mirrored[j : j + _TILE] += tile.sum(axis=0)
            sums[i : i + _TILE] += tile.sum(axis=1)
    return sums + mirrored
