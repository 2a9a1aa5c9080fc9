"""The Inception score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import FeatureMetric, normal_estimate
from bigain.metrics.inception import Inception
from bigain.runs.numbers import counted
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

_PARTS = 10


class InceptionScore(FeatureMetric):
    """`inception_score[protocol]`, for comparison with old tables: the mean over ten parts of the images.

    `standard_deviation` is that over the parts, which the tables print. It takes 20 images, and a weight file with the
    classifier.

    Source: Salimans et al., Improved Techniques for Training GANs (2016), as torch-fidelity computes it, which deals
    the images to the parts at random, in the same way every time. Published values are of 50,000 images.
    Cost: one product of features and classifier.
    """

    name = "inception_score"
    better = "higher"

    def __init__(self, extractor: Inception) -> None:
        """Take the extractor of the features."""
        self.extractor = extractor

    def incomplete(self, records: Sequence[SampleRecord]) -> str | None:
        if len(records) < 2 * _PARTS:
            return f"{counted(len(records), 'image')}: it takes {2 * _PARTS}"
        if (reason := super().incomplete(records)) is None and self.extractor.classifier is None:
            reason = "the file of the Inception weights has no classifier"
        return reason

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        assert self.extractor.classifier is not None
        features, weights = torch.from_numpy(self.features(records)).double(), self.extractor.classifier.double()
        score = isc_features_to_metric(features @ weights.T, splits=_PARTS)
        mean, deviation = score["inception_score_mean"], score["inception_score_std"]
        # The squares in `deviation` are divided by the number of parts.
        error = deviation / (_PARTS - 1) ** 0.5
        estimate = normal_estimate(mean, error, len(records), low=1.0)
        return {f"inception_score[{self.extractor.protocol}]": {**estimate, "standard_deviation": deviation}}
