"""The Frechet distance between generated and real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.metrics.base import around
from bigain.metrics.reference import Array, Distance, Features, Moments
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

# With more dimensions the bootstrap takes minutes.
_INTERVAL_DIMENSIONS = 256


class FrechetDistance(Distance):
    """`frechet[protocol]`, with an interval where it takes seconds."""

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        features, reference = self.features(records), self.reference.moments
        if features.shape[1] <= _INTERVAL_DIMENSIONS:
            return {self.label("frechet"): frechet_interval(features, reference)}
        distance = frechet_distance(Moments.of([features]), reference)
        return {self.label("frechet"): Estimate(value=distance, low=None, high=None, n=len(features))}


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute the Frechet distance between the normal distributions with these moments (Heusel et al., 2017).

    `|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`. With `S = R R'`, the eigenvalues of `S_a S_b` are the squared
    singular values of `R_a' R_b`: real and not negative, also with fewer images than dimensions. Never negative;
    biased upwards for few images, so compare sets of equal size only. Symmetric.

    Raises:
        InputError: If the dimensions differ or a set has one image.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features have {len(a.mean)} and {len(b.mean)} dimensions; both sets need one extractor")
    if 1 in (a.n, b.n):
        raise InputError("a Frechet distance needs at least 2 images in each set")
    overlap = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    separate = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(separate - 2 * overlap))


def _root(covariance: Array) -> Array:
    """Return `R` with `R R'` = covariance, `(d, r)` of full rank; directions without variance would add rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    root: Array = vectors[:, kept] * np.sqrt(values[kept])
    return root


def frechet_interval(features: Features, reference: Moments, draws: int = 200) -> Estimate:
    """Compute the Frechet distance of generated images to a reference with its 95 % interval.

    The interval is the distance plus and minus 1.96 standard errors of the Bayesian bootstrap (Rubin, 1981) over the
    generated images; the reference counts as exact. Draws lie higher than the distance, as it lies higher than that of
    infinitely many images: a bias of order d/n that no interval corrects. Hence only the spread of the draws is used,
    and only distances at equal n compare.

    A draw takes `n d r + r^3` operations, `r` the lesser of n and d: at d = 64 and n = 500 all take half a second, at
    d = 2048 minutes.

    Args:
        features: Of generated images. `(n, d)`.
        reference: Moments of the real images.
        draws: Number of draws.
    """
    moments = Moments.of([features])
    value, n = frechet_distance(moments, reference), len(features)
    centred = np.asarray(features, np.float64) - moments.mean
    squares = np.square(centred).sum(axis=1)
    projected = centred @ _root(reference.covariance)
    step = moments.mean - reference.mean
    distances = np.empty(draws)
    for draw in range(draws):
        weights = np.random.default_rng(draw).exponential(size=n)
        weights /= weights.sum()
        # Equal weights give n / (n - 1).
        unbiased = 1 / (1 - np.square(weights).sum())
        shift = weights @ centred
        spread = unbiased * (weights @ squares - shift @ shift)
        scaled = np.sqrt(unbiased * weights)[:, None] * (projected - weights @ projected)
        gram = scaled.T @ scaled if scaled.shape[1] <= n else scaled @ scaled.T
        overlap = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
        distances[draw] = np.square(step + shift).sum() + spread - 2 * overlap
    return around(value, float(distances.std(ddof=1)), n, low=0.0)
