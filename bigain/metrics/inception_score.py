"""The Inception score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

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

    Source: Salimans et al., Improved Techniques for Training GANs (2016). Images are dealt to the ten parts in the
    order of their ids, because neighbours are often of one class; published values are of 50,000 images.
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
        features, weights = torch.from_numpy(self.features(records)), self.extractor.classifier.double()
        scores = [_score(features[part::_PARTS].double() @ weights.T) for part in range(_PARTS)]
        deviation = float(np.std(scores, ddof=1))
        estimate = normal_estimate(float(np.mean(scores)), deviation / _PARTS**0.5, len(records), low=1.0)
        return {f"inception_score[{self.extractor.protocol}]": {**estimate, "standard_deviation": deviation}}


def _score(logits: Tensor) -> float:
    """Compute `exp(mean KL(p(y | x) || p(y)))` of images, from their logits. `(n, k)`."""
    log_p = logits.log_softmax(dim=1)
    log_mean = log_p.logsumexp(dim=0) - np.log(len(log_p))
    return float((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp())
