"""Agreement: the share of generated images that a classifier assigns to the class they were generated for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from bigain.data.class_space import ClassSpace
from bigain.metrics.accuracy import accuracies
from bigain.metrics.base import FeatureMetric
from bigain.metrics.extractors import FeatureExtractor
from bigain.runs.records import SampleRecord
from bigain.runs.schema import Estimate


class Agreement(FeatureMetric):
    """`agreement[protocol]`, and `agreement_<factor>[protocol]` for each factor, by the extractor's own classifier.

    There is none if the classes of the extractor and of the dataset differ, or an image has not exactly one label.
    """

    unit = "%"
    better = "higher"

    def __init__(self, extractor: FeatureExtractor) -> None:
        """Set the metric up.

        Args:
            extractor: Loaded.
        """
        self.extractor = extractor

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        extractor = self.extractor
        if tuple(extractor.class_names) != tuple(space.names) or any(len(record.labels) != 1 for record in records):
            return {}
        features = torch.from_numpy(self.features(records))
        predictions = extractor.classes_of(features.to(next(extractor.parameters()).device)).tolist()
        shares = accuracies([record.labels[0] for record in records], predictions, space.factors)
        prefixes = {"top1": "agreement", **{factor: f"agreement_{factor}" for factor in space.factors}}
        return {f"{prefixes[name]}[{extractor.protocol}]": share for name, share in shares.items()}
