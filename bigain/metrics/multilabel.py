"""Metrics of images with several labels: top-1 precision, and mean average precision over classes and over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigain.data.class_space import ClassSpace
from bigain.metrics.base import Metric, around, proportion
from bigain.runs.records import ImageRecord
from bigain.runs.schema import Estimate

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_DRAWS = 200


class Top1Precision(Metric):
    """`top1_precision`: whether the predicted class is one of the image's.

    Images without a label are left out, except from `top1_precision_all`, which counts them as wrong, as the release
    does, and is reported only if there are such images.
    """

    name = "top1_precision"

    def estimates(self, records: Sequence[ImageRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        labelled = sum(bool(record.labels) for record in records)
        correct = sum(record.prediction in record.labels for record in records)
        metrics = {"top1_precision": proportion(correct, labelled)} if labelled else {}
        if 0 < labelled < len(records):
            metrics["top1_precision_all"] = proportion(correct, len(records))
        return metrics


class MeanAveragePrecision(Metric):
    """`map_macro`, over images and averaged over classes; `map_sample`, over classes and averaged over images.

    Images without a label are left out.
    """

    name = "mean_average_precision"

    def estimates(self, records: Sequence[ImageRecord], space: ClassSpace) -> Mapping[str, Estimate]:
        labelled = [record for record in records if record.labels]
        if not labelled:
            return {}
        scores = np.stack([shared_scores(record, len(space)) for record in labelled])
        truth = np.zeros((len(labelled), len(space)), np.bool_)
        for row, record in zip(truth, labelled, strict=True):
            row[list(record.labels)] = True
        return {"map_macro": map_macro(scores, truth), "map_sample": map_sample(scores, truth)}


def shared_scores(record: ImageRecord, classes: int) -> Array:
    """Score every class by how far its error lies below the mean of the classes, on the trials that all classes share.

    Subtracting the mean makes scores comparable across images, whose errors differ more than those of their classes.

    Args:
        record: A classified image; its first stage has evaluated every class.
        classes: Number of classes.

    Returns:
        `(k,)`, larger is more likely.
    """
    trials = np.asarray(record.trials)
    width = int(trials.max()) + 1
    errors = np.full((classes, width), np.nan)
    errors[np.asarray(record.classes), trials] = np.asarray(record.errors, np.float64)
    mean = errors[:, ~np.isnan(errors).any(axis=0)].mean(axis=1)
    return mean.mean() - mean


def average_precision(scores: Array, truth: Mask, weights: Array | None = None) -> Array:
    """Compute the average precision of each row: the mean precision at each positive, ranked by descending score.

    Equal scores form one threshold, as in scikit-learn.

    Args:
        scores: `(r, n)`.
        truth: `(r, n)`.
        weights: Weight of each column, `(n,)`; 1 by default.

    Returns:
        `(r,)`, NaN for a row without positives.
    """
    return _Ranking.of(scores, truth).average_precision(np.ones(scores.shape[1]) if weights is None else weights)


@dataclass(frozen=True)
class _Ranking:
    """Rows sorted by descending score once, for any number of weights. All `(r, n)`.

    Attributes:
        order: Column of each rank.
        truth: Whether it is a positive.
        ends: Whether it is the last with its score.
    """

    order: npt.NDArray[np.int64]
    truth: Mask
    ends: Mask

    @classmethod
    def of(cls, scores: Array, truth: Mask) -> _Ranking:
        order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(scores, order, axis=1)
        last = np.ones((len(ranked), 1), np.bool_)
        ends = np.concatenate([ranked[:, 1:] != ranked[:, :-1], last], axis=1)
        return cls(order, np.take_along_axis(truth, order, axis=1), ends)

    def average_precision(self, weights: Array) -> Array:
        weight = weights[self.order]
        hit, seen = np.cumsum(weight * self.truth, axis=1), np.cumsum(weight, axis=1)
        # Positives up to the previous threshold: the difference is what a threshold adds to the recall.
        before = np.zeros_like(hit)
        np.maximum.accumulate((hit * self.ends)[:, :-1], axis=1, out=before[:, 1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(seen > 0, hit / seen, 0)
            result: Array = ((hit - before) * self.ends * precision).sum(axis=1) / hit[:, -1]
        return result


def map_sample(scores: Array, truth: Mask) -> Estimate:
    """Compute the mean over images of the average precision over classes, with its 95 % interval.

    Args:
        scores: `(n, k)`.
        truth: `(n, k)`, at least one label per image.
    """
    values = average_precision(scores, truth)
    # One image gives no spread.
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    return around(float(values.mean()), error, len(values), 0.0, 1.0)


def map_macro(scores: Array, truth: Mask) -> Estimate:
    """Compute the mean over classes of the average precision over images, with its 95 % interval.

    Classes without images are left out. The standard error is that of the Bayesian bootstrap over images (Rubin, 1981):
    unlike resampling, which repeats images and loses rare classes, it keeps every image.

    Args:
        scores: `(n, k)`, comparable across images.
        truth: `(n, k)`.
    """
    present, n = truth.any(axis=0), len(scores)
    ranking = _Ranking.of(np.ascontiguousarray(scores[:, present].T), np.ascontiguousarray(truth[:, present].T))
    value = float(ranking.average_precision(np.ones(n)).mean())
    # Weights depend on (n, draw) alone, so the interval is deterministic.
    weights = (np.random.default_rng(draw).exponential(size=n) for draw in range(_DRAWS))
    draws = [float(ranking.average_precision(weight).mean()) for weight in weights]
    return around(value, float(np.std(draws)) if n > 1 else 1.0, n, 0.0, 1.0)
