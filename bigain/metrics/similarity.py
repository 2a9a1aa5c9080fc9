"""Similarity of features to those that another run, usually without compression, has for the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bigain.metrics.base import around, jackknife_error, mean_estimate
from bigain.metrics.representation import Array, RepresentationMetric, centred, column
from bigain.runs.records import FeatureRecord
from bigain.runs.schema import Estimate


class Cka(RepresentationMetric):
    """`cka`: linear centred kernel alignment in [0, 1]; 1 if features are equal up to rotation and scale.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited (ICML 2019), for features X, Y with
    centred columns: `|Y^T X|^2 / (|X^T X| |Y^T Y|)`, in Frobenius norms. The estimate is biased upwards where images
    are fewer than channels. Its interval is that of the jackknife over images.
    """

    name = "cka"
    better = "higher"
    later = "bigain score RUN --against OTHER"

    def __init__(self, others: Mapping[str, FeatureRecord]) -> None:
        """Take the records of the other run by image id; all images of the run need one."""
        self.others = others

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        x, y = (_narrowed(centred(of, names)) for of in (records, [self.others[of.image_id] for of in records]))
        (cross, cross_without), (own, own_without), (other, other_without) = (
            _alignment(*pair) for pair in ((x, y), (x, x), (y, y))
        )
        # Features that are the same for all images are aligned with nothing.
        value = cross / ((own * other) ** 0.5 or 1.0)
        without = cross_without / np.sqrt(np.maximum(own_without * other_without, np.finfo(np.float64).tiny))
        return around(value, jackknife_error(without), len(x), 0.0, 1.0)


class Cosine(RepresentationMetric):
    """`cosine` to the features of the other run, averaged over images; of several sites and timesteps, over these too.

    Not centred: channels that are large in all images make it large, so it is close to 1 long before CKA is.
    """

    name = "cosine"
    better = "higher"
    later = Cka.later

    def __init__(self, others: Mapping[str, FeatureRecord]) -> None:
        """Take the records of the other run by image id; all images of the run need one."""
        self.others = others

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        cosines = []
        for name in names:
            x, y = (column(of, name) for of in (records, [self.others[of.image_id] for of in records]))
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            cosines.append((x * y).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny))
        return mean_estimate(np.mean(cosines, 0).tolist())


def _alignment(x: Array, y: Array) -> tuple[float, Array]:
    """Return the squared norm of `y^T x` of centred features, and its values without each image, centred again.

    Without image i the product is `y^T x - n / (n - 1) y_i x_i^T`.
    """
    product, factor = x.T @ y, len(x) / (len(x) - 1)
    whole = float(np.square(product).sum())
    without = whole - 2 * factor * ((x @ product) * y).sum(1)
    return whole, without + factor**2 * np.square(x).sum(1) * np.square(y).sum(1)


def _narrowed(x: Array) -> Array:
    """Return features with the same inner products and at most n columns. `(n, d)` -> `(n, min(n, d))`."""
    if x.shape[1] <= len(x):
        return x
    values, vectors = np.linalg.eigh(x @ x.T)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))
