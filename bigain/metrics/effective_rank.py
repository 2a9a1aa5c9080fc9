"""Effective rank: how many directions features use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigain.metrics.base import around
from bigain.metrics.representation import RepresentationMetric, centred
from bigain.runs.records import FeatureRecord
from bigain.runs.schema import Estimate


class EffectiveRank(RepresentationMetric):
    """`effective_rank`: exponential of the entropy of the singular values of features, divided by their sum.

    Source: Roy and Vetterli, The Effective Rank (EUSIPCO 2007). Features are centred, unlike in RankMe (Garrido et al.,
    ICML 2023), since their mean over images would be one large singular value. At most the number of images minus 1:
    compare runs of the same images. Its interval is from the infinitesimal jackknife (Jaeckel, 1972): the derivative by
    the weight of each image.
    """

    name = "effective_rank"

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        x = centred(records, names)
        images, values, _ = np.linalg.svd(x, full_matrices=False)
        used = values > values[0] * max(x.shape) * np.finfo(np.float64).eps
        if not used.any():
            return around(1.0, 0.0, len(x))
        share = values[used] / values[used].sum()
        entropy = -(share * np.log(share)).sum()
        rank = float(np.exp(entropy))
        # Of a covariance, an image's weight moves eigenvalue k by the square of its component there.
        influence = rank / 2 * np.square(images[:, used]) @ (share * (-np.log(share) - entropy))
        return around(rank, float(np.sqrt(np.square(influence).sum())), len(x), 1.0, float(min(len(x) - 1, x.shape[1])))
