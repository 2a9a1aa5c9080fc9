"""Metrics of images with several labels: top-1 precision, and average precision read both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigain.metrics.accuracy import Z95, proportion
from bigain.runs.records import ImageRecord
from bigain.runs.schema import Estimate

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_DRAWS = 200


def multilabel_metrics(records: Sequence[ImageRecord], classes: int) -> dict[str, Estimate]:
    """Metrics of multi-label images.

    Images without any label are left out, except from `top1_precision_all`, which counts them as wrong as the release
    does; it is told only if there are such images.

    Args:
        records: Classified images.
        classes: Number of classes.

    Returns:
        `top1_precision`: the predicted class is one of the image's; `map_macro`: mean over classes of the average
        precision over images; `map_sample`: mean over images of the average precision over classes.
    """
    labelled = [record for record in records if record.labels]
    if not labelled:
        return {}
    right = sum(record.prediction in record.labels for record in labelled)
    metrics = {"top1_precision": proportion(right, len(labelled))}
    if len(labelled) < len(records):
        metrics["top1_precision_all"] = proportion(right, len(records))
    scores = np.stack([shared_scores(record, classes) for record in labelled])
    truth = np.zeros((len(labelled), classes), np.bool_)
    for row, record in zip(truth, labelled, strict=True):
        row[list(record.labels)] = True
    return {**metrics, "map_macro": map_macro(scores, truth), "map_sample": map_sample(scores, truth)}


def shared_scores(record: ImageRecord, classes: int) -> Array:
    """Score of every class on the trials that all classes share: how far its error lies below the classes' mean.

    Subtracting the mean makes scores comparable across images, whose errors differ more than their classes do.

    Args:
        record: A classified image; its first stage has tried every class.
        classes: Number of classes.

    Returns:
        `(k,)`, larger is likelier.
    """
    trials = np.asarray(record.trials)
    width = int(trials.max()) + 1
    errors = np.full((classes, width), np.nan)
    errors[np.asarray(record.classes), trials] = np.asarray(record.errors, np.float64)
    mean = errors[:, ~np.isnan(errors).any(axis=0)].mean(axis=1)
    return mean.mean() - mean


def average_precision(scores: Array, truth: Mask, weights: Array | None = None) -> Array:
    """Average precision of each row: the mean of the precision at each positive, ranked by descending score.

    Equal scores form one threshold, as in scikit-learn.

    Args:
        scores: `(r, n)`.
        truth: `(r, n)`.
        weights: How much each column counts, `(n,)`; 1 if left out.

    Returns:
        `(r,)`, NaN for a row without positives.
    """
    return _Ranking.of(scores, truth).average_precision(np.ones(scores.shape[1]) if weights is None else weights)


@dataclass(frozen=True)
class _Ranking:
    """Rows sorted by descending score, once for any number of weightings. All `(r, n)`.

    Attributes:
        order: Column of each rank.
        truth: Whether it is a positive.
        ends: Whether it is the last of its score.
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
        # Positives up to the previous threshold, to tell what each threshold adds to the recall.
        before = np.zeros_like(hit)
        np.maximum.accumulate((hit * self.ends)[:, :-1], axis=1, out=before[:, 1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(seen > 0, hit / seen, 0)
            result: Array = ((hit - before) * self.ends * precision).sum(axis=1) / hit[:, -1]
        return result


def map_sample(scores: Array, truth: Mask) -> Estimate:
    """Mean over images of the average precision over classes, with its 95 % interval.

    Args:
        scores: `(n, k)`.
        truth: `(n, k)`, at least one label per image.
    """
    each = average_precision(scores, truth)
    # One image says nothing about the spread of many.
    error = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else 1.0
    return _estimate(float(each.mean()), error, len(each))


def map_macro(scores: Array, truth: Mask) -> Estimate:
    """Mean over classes of the average precision over images, with its 95 % interval.

    Classes that no image has are left out. The standard error is that of the Bayesian bootstrap over images (Rubin,
    1981): unlike resampling, which repeats images and loses rare classes, it keeps every image in.

    Args:
        scores: `(n, k)`, comparable across images.
        truth: `(n, k)`.
    """
    present, n = truth.any(axis=0), len(scores)
    ranking = _Ranking.of(np.ascontiguousarray(scores[:, present].T), np.ascontiguousarray(truth[:, present].T))
    value = float(ranking.average_precision(np.ones(n)).mean())
    # Weights are functions of (n, draw) alone, so the interval is, too.
    weights = (np.random.default_rng(draw).exponential(size=n) for draw in range(_DRAWS))
    draws = [float(ranking.average_precision(weight).mean()) for weight in weights]
    return _estimate(value, float(np.std(draws)) if n > 1 else 1.0, n)


def _estimate(value: float, error: float, n: int) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - Z95 * error), high=min(1.0, value + Z95 * error), n=n)
