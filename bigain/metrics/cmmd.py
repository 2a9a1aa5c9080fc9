"""CMMD: the maximum mean discrepancy of CLIP embeddings."""

from __future__ import annotations

import numpy as np

from bigain.metrics.kernel import KernelDistance, kernel_leave_one_out
from bigain.metrics.reference import Array, Features

# Bandwidth of the kernel, for embeddings of unit length, and factor of the published values.
_SIGMA, _SCALE = 10.0, 1000.0


class Cmmd(KernelDistance):
    """`cmmd[clip]` with its standard error, of `ClipFeatures` if the reference has features; these count as exact.

    1000 times the unbiased squared maximum mean discrepancy under `exp(-|a - b|^2 / (2 * 10^2))`, which is negative at
    times for sets that are alike.

    Source: Jayasumana et al., Rethinking FID (CVPR 2024).
    Cost: `(n + m)^2 d` operations.
    """

    key = "cmmd"

    def leave_one_out(self, x: Features, y: Features) -> tuple[float, Array, Array]:
        value, without_x, without_y = kernel_leave_one_out(x, y, _gaussian)
        return _SCALE * value, _SCALE * without_x, _SCALE * without_y


def _gaussian(a: Array, b: Array) -> Array:
    squared = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
    kernel: Array = np.exp(-squared / (2 * _SIGMA**2))
    return kernel
