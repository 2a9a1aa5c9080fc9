"""The Inception score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import FeatureMetric, around
from bigain.metrics.extractors import FeatureExtractor
from bigain.metrics.inception import Inception
from bigain.metrics.reference import Array, Features
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate

_PARTS = 10


class InceptionScore(FeatureMetric):
    """`inception_score[protocol]`, for comparison with old tables: the mean over ten parts of the images.

    `standard_deviation` is that over the parts, which the tables print. None of an extractor that is not Inception, of
    fewer than 20 images, or if the weight file has no classifier.

    Source: Salimans et al., Improved Techniques for Training GANs (2016). Images are dealt to the ten parts in the
    order of their ids, because neighbours are often of one class; published values are of 50,000 images.
    Cost: one product of features and classifier.
    """

    better = "higher"

    def __init__(self, extractor: FeatureExtractor) -> None:
        """Take the extractor of the features."""
        self.extractor = extractor

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        extractor = self.extractor
        if not isinstance(extractor, Inception) or len(records) < 2 * _PARTS:
            return {}
        if (classifier := extractor.classifier()) is None:
            return {}
        scores = inception_scores(self.features(records), classifier.numpy())
        deviation = float(scores.std(ddof=1))
        estimate = around(float(scores.mean()), deviation / _PARTS**0.5, len(records), low=1.0)
        return {f"inception_score[{extractor.protocol}]": {**estimate, "standard_deviation": deviation}}


def inception_scores(features: Features, classifier: Features) -> Array:
    """Compute `exp(mean KL(p(y | x) || p(y)))` of each tenth of the images.

    Args:
        features: `(n, d)`, n at least 10.
        classifier: Weights without bias. `(k, d)`.

    Returns:
        `(10,)`, each at least 1 and at most k.
    """
    weights, scores = torch.from_numpy(classifier).double(), []
    for part in range(_PARTS):
        logits = torch.from_numpy(np.asarray(features[part::_PARTS], np.float64)) @ weights.T
        log_p = logits.log_softmax(dim=1)
        log_mean = log_p.logsumexp(dim=0) - np.log(len(log_p))
        scores.append(float((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp()))
    return np.array(scores)
