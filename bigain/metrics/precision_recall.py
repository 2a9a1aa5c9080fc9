"""Improved precision and recall of generated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from bigain.data.class_space import ClassSpace
from bigain.metrics.reference import Distance, Features
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

# All pairs are compared, so larger sets are cut to this many images.
_MOST_IMAGES = 10_000
# Rows whose distances are in memory at once.
_ROWS = 1024


class PrecisionRecall(Distance):
    """`precision[protocol]` and `recall[protocol]` without intervals, if the reference has features.

    Precision: share of generated images that lie in a ball around some real image, the ball's radius being the
    distance to that image's third nearest real neighbour. Recall: the same with the sets exchanged. Both depend on the
    sizes of the sets; compare at equal sizes.

    Source: Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models (2019).
    """

    unit = "%"
    better = "higher"

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        if self.reference.features is None:
            return {}
        generated, real = _subsampled(self.features(records)), _subsampled(self.reference.features)
        shares = prc_features_to_metric(
            generated, real, prc_neighborhood=3, prc_batch_size=_ROWS, save_cpu_ram=True, verbose=False
        )
        # The shares are means in float32.
        values = {
            name: round(shares[name] * len(points)) / len(points)
            for name, points in (("precision", generated), ("recall", real))
        }
        return {
            self.label(name): Estimate(value=value, low=None, high=None, n=len(generated))
            for name, value in values.items()
        }


def _subsampled(features: Features) -> Tensor:
    """Return at most `_MOST_IMAGES`, evenly spaced: ids may be in order of class. float64: differences lose digits."""
    count = min(len(features), _MOST_IMAGES)
    return torch.from_numpy(features[np.arange(count) * len(features) // count]).double()
