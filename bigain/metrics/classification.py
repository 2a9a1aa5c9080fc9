"""All metrics of a classification run, whichever kind its dataset is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigain.data.class_space import ClassSpace
from bigain.metrics.accuracy import accuracies, confusion_matrix
from bigain.metrics.multilabel import multilabel_metrics
from bigain.runs.records import ImageRecord

_SHOWN = 200


def classification_metrics(records: Sequence[ImageRecord], space: ClassSpace) -> dict[str, Any]:
    """Metrics of classified images.

    Args:
        records: At least one.
        space: The classes.

    Returns:
        `metrics`: estimates by name. For images with one label each: `per_class`, correct and all images of each class;
        `confusion_matrix`, rows are true classes, None beyond 200 of them, where it is in no file a person can read.
    """
    if space.multilabel:
        return {"metrics": multilabel_metrics(records, len(space)), "per_class": None, "confusion_matrix": None}
    labels = [record.labels[0] for record in records]
    predictions = [record.prediction for record in records]
    matrix = confusion_matrix(labels, predictions, len(space))
    return {
        "metrics": accuracies(labels, predictions, {**space.factors, **_merged(space.names)}),
        "per_class": [{"correct": row[label], "n": sum(row)} for label, row in enumerate(matrix)],
        "confusion_matrix": matrix if len(space) <= _SHOWN else None,
    }


def _merged(names: Sequence[str]) -> dict[str, Sequence[int]]:
    """Classes of one name are exact ties, which the lower index wins: accuracy is told with them as one, too."""
    first = {name: label for label, name in reversed(list(enumerate(names)))}
    return {"top1_merged": [first[name] for name in names]} if len(first) < len(names) else {}
