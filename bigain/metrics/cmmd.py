"""CMMD: the maximum mean discrepancy of CLIP embeddings."""

from __future__ import annotations

import numpy as np

from bigain.metrics.kernel import KernelDistance
from bigain.metrics.reference import Array

# Bandwidth of the kernel, for embeddings of unit length.
_SIGMA = 10.0


class Cmmd(KernelDistance):
    """`cmmd[clip]` with its standard error, of `ClipFeatures` if the reference has features; these count as exact.

    1000 times the unbiased squared maximum mean discrepancy under `exp(-|a - b|^2 / (2 * 10^2))`, which is negative at
    times for sets that are alike.

    Source: Jayasumana et al., Rethinking FID (CVPR 2024).
    Cost: `(n + m)^2 d` operations.
    """

    key = "cmmd"
    scale = 1000.0

    @staticmethod
    def kernel(a: Array, b: Array) -> Array:
        squared_distances = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
        return np.exp(-squared_distances / (2 * _SIGMA**2))
