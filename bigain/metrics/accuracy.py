"""Accuracy of predictions, and agreement: whether generated images show the classes they were generated for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import FeatureMetric, Metric, proportion
from bigain.metrics.extractors import FeatureExtractor
from bigain.runs.records import ImageRecord, SampleRecord
from bigain.runs.schema import Estimate


class Accuracy(Metric):
    """`top1`, and the accuracy of each factor of the classes.

    Classes with the same name tie exactly, and the lower index wins: `top1_merged` counts them as one class.
    """

    name = "accuracy"
    unit = "%"
    better = "higher"

    def estimates(self, records: Sequence[ImageRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        labels = [record.labels[0] for record in records]
        factors = {**space.factors}
        first_label = {name: label for label, name in reversed(list(enumerate(space.names)))}
        if len(first_label) < len(space.names):
            factors["top1_merged"] = [first_label[name] for name in space.names]
        return accuracies(labels, [record.prediction for record in records], factors)


class Agreement(FeatureMetric):
    """`agreement[protocol]`, and `agreement_<factor>[protocol]` for each factor, by the extractor's own classifier.

    There is none if the classes of the extractor and of the dataset differ, or an image has not exactly one label.
    """

    unit = "%"
    better = "higher"

    def __init__(self, extractor: FeatureExtractor) -> None:
        """Take a loaded extractor."""
        self.extractor = extractor

    def estimates(self, records: Sequence[SampleRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        extractor, protocol = self.extractor, self.extractor.protocol
        if tuple(extractor.class_names) != tuple(space.names) or any(len(record.labels) != 1 for record in records):
            return {}
        features = torch.from_numpy(self.features(records))
        predictions = extractor.classes_of(features.to(next(extractor.parameters()).device)).tolist()
        shares = accuracies([record.labels[0] for record in records], predictions, space.factors)
        return {f"agreement{'' if name == 'top1' else f'_{name}'}[{protocol}]": share for name, share in shares.items()}


def accuracies(
    labels: Sequence[int], predictions: Sequence[int], factors: Mapping[str, Sequence[int]]
) -> dict[str, Estimate]:
    """Return `top1`, and the accuracy of each factor: whether the predicted class is in the group of the true one.

    `factors` have the group of each class.
    """
    pairs = list(zip(labels, predictions, strict=True))
    correct = {"top1": sum(a == b for a, b in pairs)}
    correct |= {name: sum(group[a] == group[b] for a, b in pairs) for name, group in factors.items()}
    return {name: proportion(count, len(pairs)) for name, count in correct.items()}


def confusion_matrix(labels: Sequence[int], predictions: Sequence[int], classes: int) -> list[list[int]]:
    """Return the number of images by true class (rows) and predicted class. `classes` x `classes`."""
    return multiclass_confusion_matrix(torch.tensor(predictions), torch.tensor(labels), classes).tolist()
