"""The Frechet distance between generated and real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.metrics.base import around, jackknife_error
from bigain.metrics.reference import Array, Distance, Features, Moments
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

# With more dimensions the jackknife takes minutes.
_INTERVAL_DIMENSIONS = 256
# Most groups of images that are left out in turn.
_GROUPS = 500


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


def frechet_interval(features: Features, reference: Moments) -> Estimate:
    """Compute the Frechet distance of generated images to a reference with its 95 % interval.

    The interval is the distance plus and minus 1.96 standard errors of the jackknife over the generated images (in
    groups if there are many); the reference counts as exact. It covers the mean of distances at this n, see
    `benchmarks/results/intervals.md`. That mean lies above the distance of infinitely many images by about d/n, so only
    distances at equal n compare.

    Args:
        features: Of generated images, at least 3. `(n, d)`.
        reference: Moments of the real images.
    """
    moments = Moments.of([features])
    value, n = frechet_distance(moments, reference), len(features)
    centred = np.asarray(features, np.float64) - moments.mean
    projected = centred @ _root(reference.covariance)
    total, scatter = np.square(centred).sum(), projected.T @ projected
    groups = np.array_split(np.arange(n), min(n, _GROUPS))
    distances = np.empty(len(groups))
    for number, group in enumerate(groups):
        kept = n - len(group)
        # The others have the sum `-left` around the mean of all.
        left, part = centred[group].sum(0), projected[group]
        spread = total - np.square(centred[group]).sum() - left @ left / kept
        overlap = scatter - part.T @ part - np.outer(part.sum(0), part.sum(0)) / kept
        roots = np.sqrt(np.linalg.eigvalsh(overlap / (kept - 1)).clip(min=0)).sum()
        step = moments.mean - left / kept - reference.mean
        distances[number] = step @ step + spread / (kept - 1) - 2 * roots
    return around(value, jackknife_error(distances), n, low=0.0)
