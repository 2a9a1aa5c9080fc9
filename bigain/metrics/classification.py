"""All metrics of a classification run, whichever kind its dataset is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigain.data.class_space import ClassSpace
from bigain.metrics.accuracy import accuracies, confusion_matrix
from bigain.metrics.multilabel import multilabel_metrics
from bigain.metrics.records import ImageRecord


def classification_metrics(records: Sequence[ImageRecord], space: ClassSpace) -> dict[str, Any]:
    """Metrics of classified images.

    Args:
        records: At least one.
        space: The classes.

    Returns:
        `metrics`: estimates by name; `confusion_matrix`: for images with one label each, otherwise None.
    """
    if space.multilabel:
        return {"metrics": multilabel_metrics(records, len(space)), "confusion_matrix": None}
    labels = [record.labels[0] for record in records]
    predictions = [record.prediction for record in records]
    return {
        "metrics": accuracies(labels, predictions, space.factors),
        "confusion_matrix": confusion_matrix(labels, predictions, len(space)),
    }
