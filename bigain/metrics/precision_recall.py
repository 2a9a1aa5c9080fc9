"""Improved precision and recall of generated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bigain.data.class_space import ClassSpace
from bigain.metrics.reference import Array, Distance, Features
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

# All pairs are compared, so larger sets are cut to this many images.
_MOST_IMAGES = 10_000
# Which neighbour's distance is the radius of a ball.
_K = 3
# Rows whose distances are in memory at once.
_ROWS = 1024


class PrecisionRecall(Distance):
    """`precision[protocol]` and `recall[protocol]` without intervals, if the reference has features."""

    unit = "%"
    better = "higher"

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        if self.reference.features is None:
            return {}
        generated = _subsampled(self.features(records))
        values = precision_recall(_subsampled(self.reference.features), generated)
        return {
            self.label(name): Estimate(value=value, low=None, high=None, n=len(generated))
            for name, value in zip(("precision", "recall"), values, strict=True)
        }


def _subsampled(features: Features) -> Features:
    """Return at most `_MOST_IMAGES`, evenly spaced: ids may be in order of class."""
    count = min(len(features), _MOST_IMAGES)
    return features[np.arange(count) * len(features) // count]


def precision_recall(real: Features, generated: Features) -> tuple[float, float]:
    """Compute improved precision and recall (Kynkaanniemi et al., 2019).

    Precision: share of generated images that lie in a ball around some real image, the ball's radius being the
    distance to that image's third nearest real neighbour. Recall: the same with the sets exchanged. Both depend on the
    sizes of the sets; compare at equal sizes.

    Args:
        real: `(n, d)`, at least 4 images.
        generated: `(m, d)`, at least 4.
    """
    # Distances are differences of squared norms; around the mean these are small and lose fewer digits.
    centre = np.asarray(real, np.float64).mean(axis=0)
    a, b = np.asarray(real, np.float64) - centre, np.asarray(generated, np.float64) - centre
    # Points on the sphere count as inside: rounding, which depends on the block, must not decide.
    tolerance = 1e-10 * float(max(np.square(a).sum(axis=1).max(), np.square(b).sum(axis=1).max()))
    return _covered(b, a, tolerance), _covered(a, b, tolerance)


def _covered(points: Array, centres: Array, tolerance: float) -> float:
    """Return the share of points that lie in the ball of some centre."""
    covered = np.zeros(len(points), np.bool_)
    for start in range(0, len(centres), _ROWS):
        rows = centres[start : start + _ROWS]
        to_centres = squared_distances(rows, centres)
        # No point is its own neighbour.
        to_centres[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
        radii = np.partition(to_centres, _K - 1, axis=1)[:, _K - 1 : _K]
        covered |= (squared_distances(rows, points) <= radii + tolerance).any(axis=0)
    return float(covered.mean())


def squared_distances(a: Array, b: Array) -> Array:
    """Return the squared distances of all pairs of rows. `(n, d)`, `(m, d)` -> `(n, m)`."""
    return np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
