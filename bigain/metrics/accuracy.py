"""Top-1 accuracy, accuracy of coarser labels, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import Metric, proportion
from bigain.runs.records import ImageRecord
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
        first = {name: label for label, name in reversed(list(enumerate(space.names)))}
        if len(first) < len(space.names):
            factors["top1_merged"] = [first[name] for name in space.names]
        return accuracies(labels, [record.prediction for record in records], factors)


def accuracies(
    labels: Sequence[int], predictions: Sequence[int], factors: Mapping[str, Sequence[int]]
) -> dict[str, Estimate]:
    """Return `top1`, and the accuracy of each factor: whether the predicted class is in the group of the true one.

    Args:
        labels: True classes.
        predictions: Predicted classes, one per label.
        factors: Group of each class, by factor.
    """
    n = len(labels)
    results = {"top1": proportion(sum(a == b for a, b in zip(labels, predictions, strict=True)), n)}
    for name, group in factors.items():
        correct = sum(group[a] == group[b] for a, b in zip(labels, predictions, strict=True))
        results[name] = proportion(correct, n)
    return results


def confusion_matrix(labels: Sequence[int], predictions: Sequence[int], classes: int) -> list[list[int]]:
    """Return the number of images by true class (rows) and predicted class. `classes` x `classes`."""
    matrix = multiclass_confusion_matrix(torch.tensor(predictions), torch.tensor(labels), classes)
    rows: list[list[int]] = matrix.tolist()
    return rows
