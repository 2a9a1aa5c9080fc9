"""Distances between two sets of features. All arithmetic is in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigain.errors import InputError
from bigain.metrics.accuracy import Z95
from bigain.runs.schema import Estimate

Array = npt.NDArray[np.float64]
Features = npt.NDArray[Any]

# Rows gathered before they are added to the moments: each addition costs d^2 whatever the rows.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        n: Size of the set; None if unknown, as in files of pytorch-fid.
        mean: `(d,)`, float64.
        covariance: Unbiased (divided by n - 1). `(d, d)`, float64.
    """

    n: int | None
    mean: Array
    covariance: Array

    @classmethod
    def of(cls, chunks: Iterable[Features]) -> Moments:
        """Moments of features that arrive in chunks; the same to rounding whatever the chunks.

        Args:
            chunks: Each `(b, d)`, any float dtype; read once.

        Raises:
            InputError: If there are no features, or some are not finite.
        """
        total: Moments | None = None
        for rows in _gathered(chunks):
            if not np.isfinite(rows).all():
                raise InputError("features are not finite; the extractor's weights are damaged, or the images")
            mean = rows.mean(axis=0)
            centred = rows - mean
            part = cls(len(rows), mean, centred.T @ centred / max(1, len(rows) - 1))
            total = part if total is None else total + part
        if total is None:
            raise InputError("no images to compute statistics of")
        return total

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub and LeVeque, 1983)."""
        if self.n is None or other.n is None:
            raise ValueError("sets of unknown size cannot be joined")
        n = self.n + other.n
        step = other.mean - self.mean
        scatter = max(0, self.n - 1) * self.covariance + max(0, other.n - 1) * other.covariance
        scatter += self.n * other.n / n * np.outer(step, step)
        return Moments(n, self.mean + other.n / n * step, scatter / max(1, n - 1))


def _gathered(chunks: Iterable[Features]) -> Iterator[Array]:
    """The same rows in larger pieces."""
    waiting: list[Array] = []
    for chunk in chunks:
        if len(chunk):
            waiting.append(np.asarray(chunk, np.float64))
        if sum(map(len, waiting)) >= _ROWS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Frechet distance between the normal distributions with these moments (Heusel et al., 2017).

    `|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`. With `S = R R'`, the eigenvalues of `S_a S_b` are the squared
    singular values of `R_a' R_b`: real and not negative, also where there are fewer images than dimensions.
    Never negative; biased upwards for few images, so sets are compared at the same `n` only.

    Args:
        a: One set.
        b: The other; the order does not matter.

    Raises:
        InputError: If the dimensions differ or a set has one image.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features have {len(a.mean)} and {len(b.mean)} dimensions; both sets need one extractor")
    if 1 in (a.n, b.n):
        raise InputError("a Frechet distance needs at least 2 images in each set")
    overlap = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    apart = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(apart - 2 * overlap))


def _root(covariance: Array) -> Array:
    """`R` with `R R'` = covariance, `(d, r)` of full rank: directions without variance would add their rounding."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    root: Array = vectors[:, kept] * np.sqrt(values[kept])
    return root


def frechet_interval(features: Features, reference: Moments, draws: int = 200) -> Estimate:
    """Frechet distance of generated images to a reference, with a 95 % interval for which images happened to be drawn.

    The interval is the distance plus and minus 1.96 standard errors of the Bayesian bootstrap (Rubin, 1981) over the
    generated images. The reference counts as exact. Draws lie higher than the distance, as it lies higher than that of
    infinitely many images: a bias of order d/n that no interval mends. Hence only their spread is used, and only
    distances at the same n compare.

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
        # What makes n / (n - 1) of equal weights.
        unbiased = 1 / (1 - np.square(weights).sum())
        shift = weights @ centred
        spread = unbiased * (weights @ squares - shift @ shift)
        scaled = np.sqrt(unbiased * weights)[:, None] * (projected - weights @ projected)
        gram = scaled.T @ scaled if scaled.shape[1] <= n else scaled @ scaled.T
        overlap = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
        distances[draw] = np.square(step + shift).sum() + spread - 2 * overlap
    error = Z95 * float(distances.std(ddof=1))
    return Estimate(value=value, low=max(0.0, value - error), high=value + error, n=n)


def kernel_distance(
    x: Features, y: Features, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance (KID; Binkowski et al., 2018) and its standard error.

    The unbiased squared maximum mean discrepancy under `(x . y / d + 1)^3`, averaged over random subsets: 0 on average
    for two sets of one distribution at any size, so it can be negative.

    The spread over subsets, which other packages report, is not the error of their mean: it depends on the subset's
    size. Subsets of m out of n images, drawn without replacement, vary by `c (1/m - 1/n)`, the estimate itself by
    `c / n`; the first gives `c`. Conservative if the sets are unlike in size or nearly alike in distribution.

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
    """Unbiased squared maximum mean discrepancy of two sets of one size."""
    m, d = x.shape
    within = 0.0
    for one in (x, y):
        kernel = (one @ one.T / d + 1) ** 3
        within += float(kernel.sum() - np.trace(kernel)) / (m * (m - 1))
    return within - 2 * float(np.mean((x @ y.T / d + 1) ** 3))


def precision_recall(real: Features, generated: Features, k: int = 3, block: int = 1024) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019).

    Precision: share of generated images that lie in a ball around some real image, the ball's radius being the
    distance to that image's k-th nearest real neighbour. Recall: the same with roles exchanged. Both depend on the
    sizes of the sets; compare at the same sizes.

    Args:
        real: `(n, d)`.
        generated: `(m, d)`.
        k: Which neighbour; less than n and m.
        block: Rows whose distances are held at once.

    Raises:
        InputError: If a set has no k-th neighbour.
    """
    if min(len(real), len(generated)) <= k:
        raise InputError(f"precision and recall at k = {k} need more than {k} images in each set")
    # Distances are differences of squared norms; around the mean these are small and lose fewer digits.
    centre = np.asarray(real, np.float64).mean(axis=0)
    a, b = np.asarray(real, np.float64) - centre, np.asarray(generated, np.float64) - centre
    # What lies on the sphere lies in the ball: rounding, which depends on the block, must not decide.
    slack = 1e-10 * float(max(np.square(a).sum(axis=1).max(), np.square(b).sum(axis=1).max()))
    return _covered(b, a, k, block, slack), _covered(a, b, k, block, slack)


def _covered(points: Array, centres: Array, k: int, block: int, slack: float) -> float:
    """Share of the points within the ball of some centre."""
    covered = np.zeros(len(points), np.bool_)
    for start in range(0, len(centres), block):
        rows = centres[start : start + block]
        to_centres = _squared(rows, centres)
        # No point is its own neighbour.
        to_centres[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
        radii = np.partition(to_centres, k - 1, axis=1)[:, k - 1 : k]
        covered |= (_squared(rows, points) <= radii + slack).any(axis=0)
    return float(covered.mean())


def _squared(a: Array, b: Array) -> Array:
    """Squared distances of all pairs."""
    squared: Array = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
    return squared
