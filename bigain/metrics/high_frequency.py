"""Share of the energy of features in high spatial frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigain.metrics.base import mean_estimate
from bigain.metrics.representation import RepresentationMetric
from bigain.runs.records import FeatureRecord
from bigain.runs.schema import Estimate


class HighFrequency(RepresentationMetric):
    """`high_frequency`: share of the energy of token maps in the upper half of spatial frequencies, mean over images.

    After the high-frequency ratio by which A-SelecT (Liu et al., 2026) selects timesteps. Different from it, energies
    are those of the cosine transform, frequencies at least half of the highest radius of `radial_bands` are high, and
    the mean over the map, mostly the same for all images, does not count.
    """

    name = "high_frequency"
    unit = "%"

    def estimate(self, records: Sequence[FeatureRecord], names: Sequence[str]) -> Estimate:
        shares = np.array([[record.high_frequency[name] for name in names] for record in records])
        return mean_estimate(shares.mean(1).tolist())
