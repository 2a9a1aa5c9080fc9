"""Accuracy with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from bigain.runs.schema import Estimate

Z95 = 1.959963984540054


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion.

    Args:
        correct: Successes.
        n: Trials, at least 1.
    """
    p = correct / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    # Rounding must not push the estimate out of its own interval at 0 and n.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def proportion(correct: int, n: int) -> Estimate:
    """A proportion as an `Estimate`."""
    low, high = wilson_interval(correct, n)
    return Estimate(value=correct / n, low=low, high=high, n=n)


def accuracies(
    labels: Sequence[int], predictions: Sequence[int], factors: Mapping[str, Sequence[int]]
) -> dict[str, Estimate]:
    """Top-1 accuracy, and accuracy of each factor: whether the predicted class lies in the right group."""
    n = len(labels)
    results = {"top1": proportion(sum(a == b for a, b in zip(labels, predictions, strict=True)), n)}
    for name, group in factors.items():
        correct = sum(group[a] == group[b] for a, b in zip(labels, predictions, strict=True))
        results[name] = proportion(correct, n)
    return results


def confusion_matrix(labels: Sequence[int], predictions: Sequence[int], classes: int) -> list[list[int]]:
    """Images of each (true, predicted) class. `classes` x `classes`."""
    matrix = multiclass_confusion_matrix(torch.tensor(predictions), torch.tensor(labels), classes)
    rows: list[list[int]] = matrix.tolist()
    return rows
