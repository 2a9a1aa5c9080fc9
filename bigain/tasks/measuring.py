"""Which metrics of generated images can be computed, and what they measure of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bigain.metrics.base import Images, Metric
from bigain.metrics.cmmd import Cmmd
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.frechet import FrechetDistance
from bigain.metrics.kernel import KernelDistance
from bigain.metrics.precision_recall import PrecisionRecall
from bigain.metrics.pretrained import ClipFeatures
from bigain.metrics.reference import ReferenceStatistics
from bigain.tasks.forwards import ROWS_ON_CPU, Forwards
from bigain.tokens.precision import without_autocast


@dataclass(frozen=True)
class Measuring:
    """The metrics of a generation and what they need.

    Attributes:
        metrics: Those that can be computed, in the order of the results.
        extractor: Of features, loaded; None if there is none or its weights are missing.
        reference: Statistics of real images; None if there are none.
        missing: Why metrics cannot be computed, by their `name`.
        forwards: Batches of extractor and metrics; on a CPU results do not depend on those of the run.
    """

    metrics: Sequence[Metric] = ()
    extractor: FeatureExtractor | None = None
    reference: ReferenceStatistics | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    forwards: Forwards = field(default_factory=lambda: Forwards(None, "images of a metric", ROWS_ON_CPU // 2))

    def measure(self, images: Images) -> tuple[Sequence[npt.NDArray[np.float32] | None], list[dict[str, float]]]:
        """Return the features of each image, `(d,)` or None; and the value of each metric by its `name`."""
        pixels, extractor = images.pixels, self.extractor
        features: Sequence[npt.NDArray[np.float32] | None] = [None] * len(pixels)
        if extractor is not None:
            with without_autocast(pixels):
                rows = self.forwards.run(lambda i, *_: extractor(pixels[i]).float(), len(pixels), pixels.device)
            features = list(rows.cpu().numpy())
        columns = {}
        for metric in self.metrics:
            if "images" in metric.needs:
                measure = metric.measure
                values = self.forwards.run(lambda i, *_: measure(images.at(i)), len(pixels), pixels.device)  # noqa: B023
                columns[metric.name] = [float(value) for value in values.tolist()]
        return features, [{name: column[i] for name, column in columns.items()} for i in range(len(pixels))]


def distances(reference: ReferenceStatistics) -> list[Metric]:
    """Return the metrics of all features against a reference."""
    further = [Cmmd(reference)] if reference.protocol == ClipFeatures.protocol else []
    return [FrechetDistance(reference), KernelDistance(reference), PrecisionRecall(reference), *further]
