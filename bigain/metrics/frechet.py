"""The Frechet distance between generated and real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bigain.data.class_space import ClassSpace
from bigain.errors import InputError
from bigain.metrics.base import jackknife_error, normal_estimate
from bigain.metrics.reference import Array, Distance, Features, Moments
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

# Directions with less than this share of the largest variance are rounding.
_NEGLIGIBLE = 1e-12
_ROWS = 1024
# Nodes of the integral over s, in units of the largest standard deviation. The integrand is analytic in log s, so that
# the trapezoidal rule converges exponentially; beyond the ends it is below 1e-8 or has a closed form.
_STEP = 0.25
_NODES = np.exp(np.arange(-22, 12, _STEP))


class FrechetDistance(Distance):
    """`frechet[protocol]` with its interval and its bias."""

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        features = self.features(records)
        n, dimension = features.shape
        value, left_out = frechet_leave_one_out(features, self.reference.moments)
        estimate = normal_estimate(value, jackknife_error(left_out), n, low=0.0)
        # With fewer images than features the jackknife's bias is wrong by a factor of two.
        estimate["bias"] = (n - 1) * float((left_out - value).mean()) if n >= dimension else None
        return {self.label("frechet"): estimate}


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute the Frechet distance between the normal distributions with these moments (Heusel et al., 2017).

    `|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`. With `S = R R'`, the eigenvalues of `S_a S_b` are the squared
    singular values of `R_a' R_b`: real and not negative, also with fewer images than dimensions. Never negative;
    biased upwards for few images, so compare sets of equal size only. Symmetric. Sets have at least 2 images.

    Raises:
        InputError: If the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features have {len(a.mean)} and {len(b.mean)} dimensions; both sets need one extractor")
    overlap = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    separate = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(separate - 2 * overlap))


def _root(covariance: Array) -> Array:
    """Return `R` with `R R'` = covariance, `(d, r)` of full rank; directions without variance would add rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_leave_one_out(features: Features, reference: Moments) -> tuple[float, Array]:
    """Compute the Frechet distance of generated images to a reference, and that without each of the images.

    The reference counts as exact. `jackknife_error` of the values is the standard error of the distance, around the
    mean distance of other samples of n images; `benchmarks/distances.py` simulates the coverage. Of two sets of the
    same items, `jackknife_error(a - b)` is the standard error of the difference. For at least d images, `(n - 1) (mean
    of the values - distance)` is the bias: by how much the distance exceeds that of infinitely many images.

    Without an image, the matrix whose root has the overlap as its trace loses a term `p p'`, and (determinant lemma)

        tr G^(1/2) - tr (G - p p')^(1/2) = -1/pi * integral over s > 0 of log(1 - p' (G + s^2)^(-1) p)

    so that all values together take one eigenvalue decomposition and `n d r` operations, `r` the reference's rank.

    Args:
        features: Of at least 3 generated images. `(n, d)`.
        reference: Moments of the real images.

    Returns:
        The distance, and the distances without each image, `(n,)`.
    """
    moments = Moments.of([features])
    value, n = frechet_distance(moments, reference), len(features)
    root, step, correction = _root(reference.covariance), moments.mean - reference.mean, n / (n - 1)
    values, vectors = np.linalg.eigh((n - 1) * root.T @ moments.covariance @ root)
    kept = values > _NEGLIGIBLE * values[-1]
    values, axes = values[kept], root @ vectors[:, kept]
    scatter, trace = (n - 1) * np.trace(moments.covariance), np.sqrt(values).sum()
    nodes = _NODES * np.sqrt(values.max(initial=0) or 1)
    weights = nodes**2 / (values[:, None] + nodes**2)
    left_out = np.empty(n)
    for start in range(0, n, _ROWS):
        centred = np.asarray(features[start : start + _ROWS], np.float64) - moments.mean
        squares, shares = np.square(centred).sum(axis=1), np.square(centred @ axes) / values
        # 1 - p' (G + s^2)^(-1) p without cancellation; 1 - p' G^(-1) p is 0 if the image alone spans a direction.
        remainder = (1 - correction * shares.sum(axis=1)).clip(min=0)
        logarithms = np.log(remainder[:, None] + correction * (shares @ weights))
        lost = correction * (shares @ values) / (nodes[-1] * np.exp(_STEP / 2)) - _STEP * (logarithms @ nodes)
        overlap = (trace - lost / np.pi) / (n - 2) ** 0.5 - trace / (n - 1) ** 0.5
        spread = (scatter - correction * squares) / (n - 2) - scatter / (n - 1)
        shift = squares / (n - 1) ** 2 - 2 * (centred @ step) / (n - 1)
        left_out[start : start + _ROWS] = value + shift + spread - 2 * overlap
    return value, left_out
